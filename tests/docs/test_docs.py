"""What the documentation names exists: links, files, commands with their flags, fields, packages."""

import ast
import collections
import functools
import pathlib
import re
import shlex

import pytest
from helpers import tiny

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.cli import main as cli
from pplx_jax.cli.verbs import VERBS
from pplx_jax.models.parameters import initial_params

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
GIN = sorted((ROOT / "gin").rglob("*.gin"))
FOLDERS = "pplx_jax|gin|launch|tests|benchmarks|docs"
# Flags of other programs that pages name in running text.
FOREIGN_FLAGS = {"--direct_num_workers", "--direct_running_mode", "--sdk_container_image", "--recursive", "--help"}
TAKES_A_RECIPE = {verb.name for verb in VERBS if verb.recipe}


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def text_of(path):
    return path.read_text(encoding="utf-8")


def commands(path):
    """The command lines of ours that a page or the header of a gin file shows, as lists of words after `pplx-jax`."""
    text = text_of(path)
    if path.suffix == ".gin":
        text = "\n".join(re.findall(r"^#( .*|)$", text, re.MULTILINE))
    text = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"^(?: {2,}|)(?:\.venv/bin/)?pplx-jax (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


# Bash variables stand for flags on the page on pods; tests/launch/test_pods_page.py runs that page under bash.
SHOWN = [(path, words) for path in [*PAGES, *GIN] if path.name != "pods.md" for words in commands(path)]


def test_pages_show_commands_of_every_verb():
    shown = {" ".join(words[:2]) if words[0] in ("data",) else words[0] for _, words in SHOWN}
    assert shown >= {verb.name for verb in VERBS} - {"merge"}


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_relative_links_resolve(path):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(path)):
        if not re.match(r"https?://", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", [*PAGES, *GIN], ids=ids([*PAGES, *GIN]))
def test_named_files_exist(path):
    named = re.findall(rf"(?<![\w/.$])((?:{FOLDERS})/[\w./-]*\w|(?:{FOLDERS})/)", text_of(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_named_modules_and_what_is_imported_from_them_exist(path):
    imported = re.findall(r"from (pplx_jax[\w.]*) import (\w+)", text_of(path))
    dotted = [name.rpartition(".")[::2] for name in re.findall(r"`(pplx_jax(?:\.\w+)+)`", text_of(path))]
    for module, name in [*imported, *dotted]:
        place = ROOT / module.replace(".", "/")
        if (place / name).is_dir() or (place / f"{name}.py").exists():
            continue
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        assert re.search(rf"^\s*(?:def|class) {name}\b|\b{name} as {name}\b|^{name} =", text_of(file), re.MULTILINE)


@pytest.mark.parametrize("path, words", SHOWN, ids=[f"{path.name}-{words[0]}" for path, words in SHOWN])
def test_commands_parse(path, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = cli._parser(VERBS).parse_args(words)
    if options.verb.name in TAKES_A_RECIPE and not any("RECIPE" in word or ".." in word for word in words):
        assert cli.main([*words, "--dry_run"]) == cli.DONE, capsys.readouterr().err


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_flags_in_running_text_exist(path):
    known = FOREIGN_FLAGS | {name for verb in VERBS for flag in verb.flags for name in flag.names}
    known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', "\n".join(map(text_of, _python("pplx_jax", "benchmarks")))))
    known |= {f"--{name}" for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', "\n".join(map(text_of, _python("launch"))))}
    spans = " ".join(re.findall(r"(?<!`)`([^`]+)`(?!`)", text_of(path)))
    assert set(re.findall(r"(?<![\w-])--[a-z_]+", spans)) <= known


def _python(*folders):
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


@functools.cache
def _fields():
    """Class -> names of its fields and methods, those of its bases included."""
    classes = collections.defaultdict(list)
    for file in _python("pplx_jax"):
        for node in ast.walk(ast.parse(text_of(file))):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(node)

    def names(name):
        found = set()
        for node in classes.get(name, ()):
            found |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
            found |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            found = found.union(*(names(getattr(base, "id", "")) for base in node.bases))
        return found

    return {name: names(name) for name in [*classes]}


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_named_fields_exist(path):
    fields = _fields()
    named = re.findall(r"\b([A-Z][A-Za-z0-9]+)\.([a-z]\w*)", " ".join(re.findall(r"`([^`]+)`", text_of(path))))
    wrong = [f"{owner}.{name}" for owner, name in named if owner in fields and name not in fields[owner]]
    assert wrong == []


def test_every_page_is_linked_from_the_index():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of(DOCS / "index.md")))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} == linked


def test_the_readme_maps_every_package_once():
    mapped = re.findall(r"^\| `pplx_jax/(\w+)/` \|", text_of(ROOT / "README.md"), re.MULTILINE)
    packages = {folder.name for folder in (ROOT / "pplx_jax").iterdir() if (folder / "__init__.py").exists()}
    assert sorted(mapped) == sorted(packages)


def test_the_readme_lists_packages_in_the_order_of_the_layers():
    mapped = re.findall(r"^\| `pplx_jax/(\w+)/` \|", text_of(ROOT / "README.md"), re.MULTILINE)
    [layers] = re.findall(r"^layers = \[(.+?)\]", text_of(ROOT / "pyproject.toml"), re.MULTILINE | re.DOTALL)
    assert mapped == re.findall(r'"(\w+)"', layers)[::-1]


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary)
    save_model(tmp_path / "quickstart_run" / "merged", config, vocabulary, initial_params(config, 0), stage="merged")
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    names = {}
    exec(block, names)
    assert (names["vectors"].dtype, names["vectors"].shape) == ("int8", (2, tiny.WIDTH))
    assert (names["bits"].dtype, names["bits"].shape) == ("uint8", (1, tiny.WIDTH // 8))
    assert len(names["chunks"]) > 1 and names["document"].shape == (len(names["chunks"]), tiny.WIDTH)
