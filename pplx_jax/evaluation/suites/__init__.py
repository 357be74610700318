"""The benchmark families. Each is a module or package with `NAMES` and `open_benchmark(name, data, **options)`."""
