"""The load test counts what a server answered, and measures only what was answered well."""

import importlib.util
import itertools
import pathlib

from helpers.loopback_server import serving

SOURCE = pathlib.Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


def test_statuses_are_counted_and_latency_is_of_good_answers():
    spec = importlib.util.spec_from_file_location("serve_load", SOURCE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    number = itertools.count()
    with serving(lambda *_: (429 if next(number) % 3 == 0 else 200, {"data": []})) as url:
        report = benchmark.load(int(url.rpartition(":")[2]), ["read", "write"], clients=2, seconds=0.3)
    good, refused = report["statuses"]["200"], report["statuses"]["429"]
    assert good > refused > 0
    assert report["requests_per_second"] == round(good / 0.3, 1) < report["texts_per_second"]
    assert report["milliseconds"]["p50"] <= report["milliseconds"]["p95"] <= report["milliseconds"]["p99"]
