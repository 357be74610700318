"""The shipped verbs: their flags are parameters, help shows the real defaults, and every example works."""

import dataclasses
import importlib
import inspect
import pathlib
import re
import shlex
import types
import typing

import pytest

from pplx_jax.cli import main as cli
from pplx_jax.cli.parser import build_parser, parse, shown_default
from pplx_jax.cli.signature import defaults
from pplx_jax.cli.verb import PATHS, WORKDIR, PathOrUrl
from pplx_jax.cli.verbs import VERBS
from pplx_jax.core.errors import EXIT_CODES

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [(verb, flag) for verb in VERBS for flag in verb.flags if not flag.gin_file]
of_every_verb = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
of_every_flag = pytest.mark.parametrize(
    ("verb", "flag"), FLAGS, ids=[f"{verb.name} {flag.names[0]}" for verb, flag in FLAGS]
)


def imported(target):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


_help: dict[str, str] = {}


def help_of(words, capsys):
    """Returns what the program prints, asked once for each verb."""
    if words not in _help:
        assert cli.main([*words.split(), "--help"]) == cli.DONE
        _help[words] = capsys.readouterr().out
    return _help[words]


def without_breaks(text):
    return " ".join(text.split())


@of_every_flag
def test_a_flag_is_a_parameter_and_help_shows_its_default(verb, flag, capsys):
    owner = flag.owner or verb.target
    parameter = inspect.signature(imported(owner)).parameters[flag.parameter]
    given = {} if parameter.default is parameter.empty else {flag.parameter: parameter.default}
    read = defaults(owner)
    assert {name: value for name, value in read.items() if name == flag.parameter} == given
    assert type(read.get(flag.parameter)) is type(given.get(flag.parameter))
    shown = shown_default(given.get(flag.parameter))
    help = without_breaks(help_of(verb.name, capsys))
    assert without_breaks(flag.options["help"]) + shown in help


@of_every_verb
def test_a_default_is_written_once(verb):
    for flag in verb.flags:
        if shown_default(defaults(flag.owner or verb.target).get(flag.parameter)):
            assert "default" not in flag.options["help"]


@of_every_flag
def test_choices_are_those_of_the_annotation(verb, flag):
    hint = typing.get_type_hints(imported(flag.owner or verb.target))[flag.parameter]
    literals = {value for each in _alternatives(hint) if typing.get_origin(each) is typing.Literal
                for value in typing.get_args(each)}  # fmt: skip
    assert not literals or literals == {*flag.options.get("choices", literals)}
    assert not literals or "choices" in flag.options or flag.options["type"].__name__ == "names"


def _alternatives(hint):
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [inner for each in typing.get_args(hint) for inner in _alternatives(each)]
    return [hint]


@of_every_flag
def test_a_parameter_that_is_a_path_has_a_flag_of_a_type_of_paths(verb, flag):
    # So the command line refuses URLs that it cannot take.
    hint = typing.get_type_hints(imported(flag.owner or verb.target))[flag.parameter]
    inner = {each for part in _alternatives(hint) for each in (part, *typing.get_args(part))}
    assert pathlib.Path not in inner or flag.options.get("type") in PATHS


URLS = ("s3://bucket/x", "memory://bucket/x", "file://bucket/x", "nonsense://bucket/x")


@pytest.mark.parametrize("url", URLS)
@of_every_verb
def test_a_url_that_a_verb_cannot_take_is_refused_at_once(verb, url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = [*verb.name.split(), *shlex.split(verb.example)]
    for flag in (*verb.flags, WORKDIR):
        kind = flag.options.get("type")
        if kind not in PATHS or (kind is PathOrUrl and url.startswith("s3:")):
            continue
        words = _with_value(verb, example, flag, url)
        assert cli.main(words) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and url in error and "Traceback" not in error
        assert flag.parameter in error or flag.names[0] in error or flag.options.get("metavar", "?") in error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("bucket")
@of_every_verb
def test_a_bucket_that_cannot_be_used_is_refused_at_once(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = [*verb.name.split(), *shlex.split(verb.example)]
    for flag in (*verb.flags, WORKDIR):
        if flag.options.get("type") not in PATHS or (flag is WORKDIR and not verb.runs_recipe()):
            continue
        url = "gs://no-such-bucket/x"
        words = [word.replace("gs://bucket/tokens", "tokens") for word in _with_value(verb, example, flag, url)]
        assert cli.main(words) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "no-such-bucket" in error and "Traceback" not in error
        assert "cannot be" in error or flag.local is not None
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def _with_value(verb, words, flag, value):
    """Returns the words of a call with the value of a flag replaced or added."""
    if flag.names[0].startswith("-"):
        others = [word for word in words if not word.startswith(f"{flag.names[0]}=")]
        return [*others, f"{flag.names[0]}={value}"]
    positional = [one for one in verb.flags if not one.names[0].startswith("-")]
    place = len(verb.name.split()) + positional.index(flag)
    return [*words[:place], value, *words[place + 1 :]]


def test_a_url_that_gin_binds_is_refused_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    binding = "--gin_param=evaluate_task.output='s3://bucket/x'"
    assert cli.main(["eval", "--model=bm25", "--task=here", binding]) == cli.BAD_INPUT
    assert "s3://bucket/x is a URL" in capsys.readouterr().err


@of_every_verb
def test_an_example_is_understood(verb):
    options = parse([*verb.name.split(), *shlex.split(verb.example)], VERBS)
    assert options["verb"] is verb
    for file in options["gin_file"]:
        assert (ROOT / file).is_file()


@of_every_verb
def test_help_ends_with_the_example(verb, capsys):
    assert help_of(verb.name, capsys).endswith(f"\nexample:\n  pplx-jax {verb.name} {verb.example}\n")


def test_help_lists_every_verb_under_a_heading_and_every_exit_code(capsys):
    text = help_of("", capsys)
    assert text.startswith("usage: pplx-jax VERB ...\n")
    for verb in VERBS:
        assert re.search(rf"^{verb.heading}:$(\n  .*)*\n  {verb.name} +{re.escape(verb.help)}$", text, re.MULTILINE)
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", text, re.MULTILINE)


def test_the_documentation_lists_every_exit_code():
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(EXIT_CODES)


def test_help_of_a_group_lists_its_verbs(capsys):
    text = help_of("data", capsys)
    assert text.startswith("usage: pplx-jax data VERB ...\n")
    assert "  data cache " in text and "  data report " in text and "  run " not in text


def test_both_spellings_of_every_verb():
    for verb in VERBS:
        assert not any("-" in flag.names[0].lstrip("-") for flag in verb.flags)
        for spelled in (verb.name, verb.name.replace("-", "_")):
            words = [*spelled.split(), *shlex.split(verb.example), "--dry-run", "--gin-param=a.b=1"]
            options = parse(words, VERBS)
            assert options["verb"] is verb and options["dry_run"] and options["gin_param"] == ["a.b=1"]


def test_help_shows_one_spelling(capsys):
    for verb in VERBS:
        assert not re.findall(r"(?<![\w-])--[a-z]+-\w+", help_of(verb.name, capsys))
    assert build_parser(VERBS).prog == "pplx-jax"


class TestDefaults:
    """`signature.defaults` reads what an import would give."""

    @of_every_verb
    def test_of_every_parameter(self, verb):
        found = defaults(verb.target)
        for name, parameter in inspect.signature(imported(verb.target)).parameters.items():
            if name in found:
                assert found[name] == parameter.default, name
            else:
                assert parameter.default is parameter.empty or dataclasses.is_dataclass(parameter.default), name

    def test_of_a_module_elsewhere(self):
        assert defaults("json:dumps") == {}
        assert defaults("pplx_jax.checkpoints.merge:nothing") == {}
