"""The parser of the command line: verbs by topic, one example per verb, defaults from the functions' signatures."""

import argparse
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from pplx_jax.cli.signature import defaults
from pplx_jax.cli.verb import METAVARS, PATHS, WORKDIR, Flag, Verb
from pplx_jax.cli.verbs import GROUPS
from pplx_jax.core.errors import EXIT_CODES, BadInput

PROGRAM = "pplx-jax"
_ABOUT = "Train, evaluate and serve text-embedding models in JAX: diffusion pretraining, then contrastive stages."
_MORE = f"""\
`{PROGRAM} VERB --help` shows the flags of a verb and an example.
Verbs and flags may be written with hyphens or underscores."""


def parse(argv: Sequence[str], verbs: Sequence[Verb]) -> dict[str, Any]:
    """Returns the parsed options: `verb`, the shared flags, and the flags that were given.

    Raises:
        BadInput: an unknown verb or flag, a missing one, or a value of the wrong type.
        SystemExit: help or the version was printed.
    """
    return vars(build_parser(verbs).parse_args(_spelled_as_declared(argv)))


def _spelled_as_declared(argv: Sequence[str]) -> list[str]:
    """Writes the verb with hyphens and the names of flags with underscores: `import_hf --mask-token=x` works too."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = words[0].replace("_", "-")
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        if word.startswith("--"):
            name, *value = word[2:].split("=", 1)
            words[place] = "=".join(["--" + name.replace("-", "_"), *value])
    return words


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str):
        raise BadInput(f"{message}; see {self.prog} --help")


class _VerbParser(_Parser):
    """The parser of one verb. It looks up defaults when help is printed, and only then."""

    def __init__(self, *, verb: Verb, **options: Any):
        super().__init__(
            description=_sentence(verb.help),
            epilog=f"example:\n  {PROGRAM} {verb.name} {verb.example}" if verb.example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        self._verb = verb
        self._flags = [(flag, self.add_argument(*flag.names, **_options(flag))) for flag in verb.flags]
        _add_shared(self.add_argument_group("flags of every verb"), verb)
        self.set_defaults(verb=verb)

    def format_help(self) -> str:
        for flag, action in self._flags:
            value = defaults(flag.owner or self._verb.target).get(flag.parameter)
            action.help = flag.options["help"] + shown_default(value)
        return super().format_help()


def shown_default(value: Any) -> str:
    """Returns " (default: VALUE)", or nothing for None, "" and switches, which the help of a flag explains in words."""
    return "" if value is None or isinstance(value, bool) or value in ("", ()) else f" (default: {value})"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _options(flag: Flag) -> dict[str, Any]:
    """Adds what follows from the type; a flag that is not given leaves no trace in the options."""
    kind = flag.options.get("type")
    metavar = {"metavar": METAVARS[kind]} if kind else {}
    checked = {"type": _path_of(flag)} if kind in PATHS else {}
    return {"default": argparse.SUPPRESS, "help": "", **metavar, **flag.options, **checked}


def _path_of(flag: Flag) -> Callable[[str], Any]:
    """Returns what argparse calls to read a path; argparse then names the flag in the error."""

    def read(text: str) -> Any:
        try:
            return flag.checked_path(text)
        except BadInput as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _add_shared(group: Any, verb: Verb) -> None:
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file, from the current folder or as shipped (repeatable)",
    )
    group.add_argument(
        "--gin_param",
        action="append",
        default=[],
        metavar="BINDING",
        help="a gin binding, such as pair/Training.steps=9 (repeatable)",
    )
    group.add_argument(
        "--workdir",
        type=_path_of(WORKDIR),
        metavar="DIR",
        required=verb.runs_recipe() and verb.recipe_unless is None,
        help="the folder where the command works: a recipe's outputs are there, and relative paths given by flags "
        f"start there{'' if verb.runs_recipe() else ' (default: the current folder)'}",
    )
    group.add_argument("--dry_run", action="store_true", help="print what would be done; write nothing")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout, logs on stderr")


def build_parser(verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    """Builds the parser of all verbs."""
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB ...",
        description=f"{_ABOUT}\n\n{_listing(verbs)}",
        epilog=f"{_MORE}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"{PROGRAM} {importlib.metadata.version('pplx-jax')}"
    parser.add_argument("--version", action="version", version=version)
    commands = _add_commands(parser)
    groups: dict[str, Any] = {}
    for verb in verbs:
        group, _, name = verb.name.rpartition(" ")
        if group and group not in groups:
            members = [each for each in verbs if each.name.startswith(f"{group} ")]
            parent = commands.add_parser(
                group,
                usage=f"{PROGRAM} {group} VERB ...",
                description=f"{_sentence(GROUPS[group])}\n\n{_listing(members)}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            groups[group] = _add_commands(parent)
        groups.get(group, commands).add_parser(name, verb=verb)
    return parser


def _add_commands(parser: argparse.ArgumentParser) -> Any:
    def make(verb: Verb | None = None, **options: Any) -> argparse.ArgumentParser:
        return _Parser(**options) if verb is None else _VerbParser(verb=verb, **options)

    options: dict[str, Any] = {"parser_class": make, "help": argparse.SUPPRESS}
    return parser.add_subparsers(prog=parser.prog, metavar="VERB", required=True, **options)


def _listing(verbs: Sequence[Verb]) -> str:
    """Lists verbs under their headings, in columns."""
    width = max(len(verb.name) for verb in verbs)
    lines: dict[str, list[str]] = {}
    for verb in verbs:
        lines.setdefault(verb.heading, []).append(f"  {verb.name:<{width}}  {verb.help}")
    return "\n\n".join("\n".join([f"{heading}:", *each]) for heading, each in lines.items())
