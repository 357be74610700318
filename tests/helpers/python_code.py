"""Python packages for tests: functions whose docstrings describe in words what their code does."""

import itertools
import pathlib

_VERBS = ("read", "write", "open", "close", "merge", "split", "rank", "pool")
_NOUNS = ("file", "index", "vector", "document", "query", "table", "shard", "batch")
_PLACES = ("cache", "disk", "queue", "stack")


def write_packages(root: pathlib.Path, names: tuple[str, ...], functions_per_module: int = 8) -> pathlib.Path:
    """Writes packages of modules of functions under `root`; no two functions of all packages are equal."""
    phrases = itertools.product(_VERBS, _NOUNS, _PLACES)
    modules = [
        list(itertools.islice(phrases, functions_per_module))
        for _ in range(len(_VERBS) * len(_NOUNS) * len(_PLACES) // functions_per_module)
    ]
    for number, module in enumerate(modules):
        package = root / names[number % len(names)]
        package.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(_function(*phrase) for phrase in module)
        (package / f"module_{number}.py").write_text(text + "\n", encoding="utf-8")
    return root


def _function(verb: str, noun: str, place: str) -> str:
    return (
        f"def {verb}_{noun}_{place}(path, flags=None):\n"
        f'    """{verb.title()} the {noun} that lies in the {place}."""\n'
        f"    {noun} = {place}.{verb}(path, flags)\n"
        f"    if not {noun}:\n"
        f'        raise ValueError("no {noun} to {verb}")\n'
        f"    return {noun}"
    )
