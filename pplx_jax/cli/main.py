"""The command line: `pplx-jax VERB`. What the verbs are stands in `verbs`; this is how any of them is run.

Exit codes: 0 done, 1 failed (a traceback, or a report that says no), 2 bad input (one line: what, where and the mend),
75 asked to stop by SIGTERM and saved, 76 another process of the job is missing or died (a line that names it),
130 interrupted.
With `--json` standard output holds exactly one JSON object; everything else goes to standard error.
"""

import argparse
import contextlib
import errno
import importlib.metadata
import inspect
import json
import logging
import pathlib
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pplx_jax
from pplx_jax.cli.verbs import GROUPS, VERBS, PathOrName, Verb
from pplx_jax.core.errors import BAD_INPUT, PREEMPTED, PROCESS_LOST, BadInput, Preempted, ProcessLost, Unmet
from pplx_jax.core.native_logs import skip_absent_tpu

if TYPE_CHECKING:
    from pplx_jax.configuration import Config, Table

PROGRAM = "pplx-jax"
DONE, FAILED, INTERRUPTED = 0, 1, 130
_WRONG_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)


def main(argv: Sequence[str] | None = None, verbs: Sequence[Verb] = VERBS, table: "Table | None" = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the words after the program's name; those of this process by default.
        verbs: the commands there are.
        table: what recipes may name, and where the verbs' functions are; the project's own by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        options = vars(_parser(verbs).parse_args(argv))
    except BadInput as error:
        complaint = _complain(f"error: {error}")
        if "--json" in argv:
            print(json.dumps(complaint))
        return BAD_INPUT
    except SystemExit as stop:  # argparse has said what it had to say
        return int(stop.code or 0)
    skip_absent_tpu()
    verb, as_json = options.pop("verb"), options.pop("json")
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        code, result = _guarded(verb, options, table)
    if as_json:
        print(json.dumps({} if result is None else result, default=_plain))
    elif result and "error" not in result:
        _show(result)
    if code != DONE and verb.recipe and verb.writes:
        from pplx_jax.parallel.heartbeat import leave

        leave(code)
    return code


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str):
        raise BadInput(f"{message}; see {self.prog} --help")


def _parser(verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Text embeddings by diffusion pretraining, trained in JAX.")
    version = f"{PROGRAM} {importlib.metadata.version('pplx-jax')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    groups: dict[str, Any] = {}
    for verb in verbs:
        group, _, name = verb.name.rpartition(" ")
        if group and group not in groups:
            about = GROUPS[group]
            parent = commands.add_parser(group, help=about, description=f"{about[0].upper()}{about[1:]}.")
            groups[group] = parent.add_subparsers(title="verbs", metavar="VERB", required=True)
        command = groups.get(group, commands).add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            allow_abbrev=False,
        )
        for flag in verb.flags:
            keywords: dict[str, Any] = {"default": argparse.SUPPRESS, **flag.options}
            command.add_argument(*flag.names, **keywords)
        shared = command.add_argument_group("shared by every verb")
        shared.add_argument("--gin_file", action="append", default=[], help="a recipe (repeatable)")
        shared.add_argument(
            "--gin_param",
            action="append",
            default=[],
            help="a binding, such as pair/Training.steps=9 (repeatable)",
        )
        shared.add_argument(
            "--workdir",
            type=pathlib.Path,
            required=verb.recipe is not None and verb.writes,
            help="where a recipe lives" if verb.recipe else "the folder that relative paths start from",
        )
        shared.add_argument("--dry_run", action="store_true", help="say what would be done, write nothing")
        shared.add_argument("--json", action="store_true", help="one JSON object on standard output")
        command.set_defaults(verb=verb)
    return parser


def _guarded(verb: Verb, options: dict[str, Any], table: "Table | None") -> tuple[int, Any]:
    """Runs a verb; returns the exit code, and the result or {"error": why there is none}."""
    runs_recipe = verb.recipe is not None and verb.writes
    try:
        with _logging(), _stopping(verb) if runs_recipe else contextlib.nullcontext():
            return DONE, _perform(verb, options, table)
    except BadInput as error:
        return BAD_INPUT, _complain(f"error: {error}")
    except Preempted as stop:
        return PREEMPTED, _complain(str(stop))
    except ProcessLost as error:
        return PROCESS_LOST, _complain(f"error: {error}")
    except Unmet as error:
        return FAILED, dict(error.report)
    except KeyboardInterrupt:
        return INTERRUPTED, _complain(f"interrupted; {_same_command(verb, 'here')}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or options.get("workdir") or "the output"
            return BAD_INPUT, _complain(f"error: the disk of {where} is full; make room and run this again")
        # What goes missing under a recipe that runs is worth another start, which bad input is not given.
        if isinstance(error, _WRONG_PATH) and error.filename is not None and not runs_recipe:
            return BAD_INPUT, _complain(f"error: {error.filename}: {error.strerror}; check this path")
        traceback.print_exc()
        return FAILED, {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return FAILED, {"error": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _stopping(verb: Verb) -> Iterator[None]:
    """Turns SIGTERM into an exception; a training loop takes it for itself, to save first."""

    def stop(*_: object) -> None:
        raise Preempted(f"asked to stop; {_same_command(verb, 'the last phase that is done')}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept or signal.SIG_DFL)


def _same_command(verb: Verb, place: str) -> str:
    return f"the same command {f'goes on from {place}' if verb.goes_on else 'starts over'}"


def _complain(message: str) -> dict[str, str]:
    line = " ".join(message.split())
    print(f"{PROGRAM}: {line}", file=sys.stderr)
    return {"error": line.removeprefix("error: ")}


def _perform(verb: Verb, options: dict[str, Any], table: "Table | None") -> Any:
    """Loads the recipe, finds the function and calls it with flags over bindings over defaults."""
    from pplx_jax.configuration import Table, load

    files, params, dry_run = options.pop("gin_file"), options.pop("gin_param"), options.pop("dry_run")
    if verb.recipe and not files:
        raise BadInput(f"{verb.name} needs a recipe, such as --gin_file gin/recipes/quickstart.gin")
    for flag in verb.flags:
        if flag.files and (given := options.pop(flag.parameter, None)):
            files.append(given if given.endswith(".gin") else flag.files.format(given))
    table = table or Table()
    config = load(files, params, table=table, unset=None if verb.writes else "unset", defaults=verb.bindings)
    function = table.target(verb.function)
    arguments = _arguments(verb, function, config, options)
    if dry_run:
        from pplx_jax.cli.dry_run import plan

        return plan(verb, arguments, config)
    return function(**arguments)


def _arguments(
    verb: Verb, function: Callable[..., Any], config: "Config", options: Mapping[str, Any]
) -> dict[str, Any]:
    """Flags over bindings; a function that has such a parameter is also told what the recipe is."""
    parameters = inspect.signature(function).parameters
    given = dict(options)
    if "workdir" not in parameters:
        workdir = given.pop("workdir")
        if workdir is not None:
            given = {name: _start_from(workdir, value) for name, value in given.items()}
    about = {
        "config_text": config.resolved(),
        "fingerprint": config.fingerprint,
        "settings": config.settings,
    }
    offered = {**about, **config.arguments.get(verb.recipe or verb.function, {})}
    arguments = {name: value for name, value in offered.items() if name in parameters} | given
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD
        if name not in arguments and not optional:
            owner = verb.recipe or verb.function
            raise BadInput(f"nothing sets {owner}.{name}; bind it in a gin file or by --gin_param")
    return arguments


def _start_from(workdir: pathlib.Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_start_from(workdir, item) for item in value]
    if isinstance(value, PathOrName):
        return workdir / value if (workdir / value).exists() else value
    return workdir / value if isinstance(value, pathlib.Path) else value


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows our own messages from INFO on, those of other libraries from WARNING on."""
    from absl import logging as absl_logging

    package = str(pathlib.Path(pplx_jax.__file__).parent)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.pathname.startswith(package))
    absl_logging.set_verbosity(absl_logging.INFO)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _plain(value: Any) -> Any:
    """What JSON has no word for: arrays and their scalars as numbers, the rest (paths) as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _show(result: Mapping[str, Any] | None, prefix: str = "") -> None:
    """Prints a result for people: `name  value` lines, lists of rows, long texts as they are."""
    for name, value in (result or {}).items():
        match value:
            case Mapping():
                _show(value, f"{prefix}{name}.")
            case [Mapping() as row, *_] if any(isinstance(cell, Mapping) for cell in row.values()):
                pass  # rows of that depth are for --json
            case [Mapping(), *_]:
                _show_rows(value)
            case list():
                for item in value:
                    print(f"{prefix}{name}  {item}")
            case str() if "\n" in value:
                print(f"\n{value}", end="")
            case _:
                print(f"{prefix}{name}  {value}")


def _show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of what any row has; where cells hold several lines, a numbered block a row with those below."""
    cells = [
        {
            name: f"{cell:.4g}" if isinstance(cell, float) else str(cell)
            for name, cell in row.items()
            if cell is not None and not isinstance(cell, list)  # rows of that depth are for --json
        }
        for row in rows
    ]
    long = {name for row in cells for name, cell in row.items() if "\n" in cell}
    if not long:
        columns = list(dict.fromkeys(name for row in cells for name in row))
        print("  ".join(columns))
        for row in cells:
            print("  ".join(row.get(name, "-") for name in columns))
        return
    for number, row in enumerate(cells, 1):
        (_, title), *others = row.items()
        print("  ".join([f"{number}. {title}", *(f"{name} {cell}" for name, cell in others if name not in long)]))
        for name in long & row.keys():
            print(textwrap.indent(row[name], "    ") + "\n")
