"""Runs one command of the command line: `pplx-jax VERB`.

`verbs` lists the verbs, `parser` parses them, `core.errors` has the table of exit codes. With `--json`, standard output
holds exactly one JSON object; everything else goes to standard error.
"""

import contextlib
import errno
import inspect
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pplx_jax
from pplx_jax.cli.parser import PROGRAM, parse
from pplx_jax.cli.verb import PATHS, PathOrName, PathOrUrl, Verb
from pplx_jax.cli.verbs import VERBS
from pplx_jax.core.compilation_cache import use_compilation_cache
from pplx_jax.core.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    PREEMPTED,
    PROCESS_LOST,
    BadInput,
    Failed,
    Preempted,
    ProcessLost,
    Unmet,
)
from pplx_jax.core.native_logs import skip_absent_tpu
from pplx_jax.core.packages import extra_with
from pplx_jax.core.paths import as_path, is_bucket, scheme

if TYPE_CHECKING:
    from pplx_jax.configuration import Config, Table

_WRONG_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)


def main(argv: Sequence[str] | None = None, verbs: Sequence[Verb] = VERBS, table: "Table | None" = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the words after the name of the program; those of this process by default.
        verbs: the available verbs.
        table: what recipes may name; the project's own by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        options = parse(argv, verbs)
    except BadInput as error:
        complaint = _complain(f"error: {error}")
        if "--json" in argv:
            print(json.dumps(complaint))
        return BAD_INPUT
    except SystemExit as stop:  # argparse has printed help or the version
        return int(stop.code or 0)
    skip_absent_tpu()
    verb, as_json = options.pop("verb"), options.pop("json")
    if not verb.inspects_only:  # `plan` reads what the compiler says of a program
        use_compilation_cache()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        code, result = _guarded(verb, options, table)
    if as_json:
        print(json.dumps({} if result is None else result, default=_plain))
    elif result and "error" not in result:
        from pplx_jax.cli.show import show

        show(result)
    if code != DONE and (heartbeat := sys.modules.get("pplx_jax.parallel.heartbeat")):
        heartbeat.leave(code)
    return code


def _guarded(verb: Verb, options: dict[str, Any], table: "Table | None") -> tuple[int, Any]:
    """Runs a verb. Returns the exit code, and the result or {"error": message}."""
    try:
        with _logging(), _stopping(verb) if verb.runs_recipe(options) else contextlib.nullcontext():
            return DONE, _perform(verb, options, table)
    except BadInput as error:
        return BAD_INPUT, _complain(f"error: {error}")
    except Preempted as stop:
        return PREEMPTED, _complain(str(stop))
    except ProcessLost as error:
        return PROCESS_LOST, _complain(f"error: {error}")
    except Failed as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return FAILED, {"error": str(error)}
    except Unmet as error:
        return FAILED, dict(error.report)
    except KeyboardInterrupt:
        return INTERRUPTED, _complain(f"interrupted; {_same_command(verb, 'here')}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or options.get("workdir") or "the output"
            return BAD_INPUT, _complain(f"error: the disk of {where} is full; free some space and run this again")
        # A job that runs a recipe is started again after a failure, but not after bad input: a file that a running
        # recipe misses may be back by then.
        if isinstance(error, _WRONG_PATH) and error.filename is not None and not verb.runs_recipe(options):
            return BAD_INPUT, _complain(f"error: {error.filename}: {error.strerror}; check this path")
        traceback.print_exc()
        return FAILED, {"error": str(error)}
    except ModuleNotFoundError as error:
        if extra := extra_with(error.name or ""):
            missing = f"{verb.name} needs the module {error.name}, which is not installed"
            return BAD_INPUT, _complain(f"error: {missing}: pip install 'pplx-jax[{extra}]'")
        traceback.print_exc()
        return FAILED, {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:
        traceback.print_exc()
        return FAILED, {"error": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _stopping(verb: Verb) -> Iterator[None]:
    """Turns SIGTERM into an exception. A training loop installs its own handler, which saves first."""

    def stop(*_: object) -> None:
        raise Preempted(f"stopped by SIGTERM; {_same_command(verb, 'the last finished phase')}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _same_command(verb: Verb, place: str) -> str:
    return f"the same command {f'resumes from {place}' if verb.resumes else 'starts over'}"


def _complain(message: str) -> dict[str, str]:
    line = " ".join(message.split())
    print(f"{PROGRAM}: {line}", file=sys.stderr)
    return {"error": line.removeprefix("error: ")}


def _perform(verb: Verb, options: dict[str, Any], table: "Table | None") -> Any:
    """Loads the recipe, imports the function and calls it with flags over bindings over defaults."""
    from pplx_jax.configuration import Table, load
    from pplx_jax.configuration.table import import_name

    files, params, dry_run = options.pop("gin_file"), options.pop("gin_param"), options.pop("dry_run")
    _require_recipe(verb, files, options)
    for flag in verb.flags:
        if flag.gin_file and (given := options.pop(flag.parameter, None)):
            files.append(given if given.endswith(".gin") else flag.gin_file.format(given))
    table = table or Table(verbs=tuple(verb.target for verb in VERBS))
    if verb.loads_recipes:
        options |= {"gin_files": files, "gin_params": params, "dry_run": dry_run}
        files, params, dry_run = (), (), False
    config = load(files, params, table=table, unset="unset" if verb.inspects_only else None, defaults=verb.bindings)
    function = import_name(*verb.target.split(":"))
    arguments = _arguments(verb, function, config, options)
    if dry_run:
        from pplx_jax.cli.dry_run import describe

        return describe(verb, arguments, config)
    _require_usable(verb, arguments)
    return function(**arguments)


def _require_usable(verb: Verb, arguments: Mapping[str, Any]) -> None:
    """Raises BadInput if a bucket of the call cannot be used: now, and not when the first result is there."""
    outputs = {*verb.outputs, *(("workdir",) if verb.runs_recipe(arguments) else ())}
    for name, value in arguments.items():
        for path in value if isinstance(value, list | tuple) else (value,):
            if isinstance(path, str | os.PathLike) and is_bucket(path):
                from pplx_jax.core.buckets import require_usable

                require_usable(as_path(path), output=name in outputs)


def _require_recipe(verb: Verb, files: Sequence[str], options: Mapping[str, Any]) -> None:
    instead = f", or --{verb.recipe_unless}" if verb.recipe_unless else ""
    if verb.recipe and verb.recipe_unless not in options and not files:
        raise BadInput(f"{verb.name} needs a recipe, such as --gin_file=gin/recipes/quickstart.gin{instead}")
    if verb.runs_recipe(options) and options["workdir"] is None:
        raise BadInput(f"{verb.name} needs --workdir, the folder of the recipe's outputs{instead}")


def _arguments(
    verb: Verb, function: Callable[..., Any], config: "Config", options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of the call: flags over bindings, and facts about the recipe that the function takes."""
    parameters = inspect.signature(function).parameters
    workdir = options["workdir"]
    given = {name: _start_from(workdir, value) for name, value in options.items() if name != "workdir"}
    if workdir is not None and "workdir" in parameters:
        given["workdir"] = workdir
    about = {
        "config_text": config.resolved(),
        "fingerprint": config.fingerprint,
    }
    offered = {**about, **config.arguments.get(verb.recipe or verb.function, {})}
    paths = {flag.parameter: flag for flag in verb.flags if flag.options.get("type") in PATHS}
    bound = {name: paths[name].checked_path(value) if name in paths else value
             for name, value in offered.items() if name in parameters}  # fmt: skip
    arguments = bound | given
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD
        if name not in arguments and not optional:
            owner = verb.recipe or verb.function
            raise BadInput(f"nothing sets {owner}.{name}; bind it in a gin file or with --gin_param")
    return arguments


def _start_from(workdir: pathlib.Path | None, value: Any) -> Any:
    """Returns the value of a flag with its relative paths in the workdir; a URL or a name stays as it is."""
    if workdir is None or (isinstance(value, os.PathLike) and (is_bucket(value) or os.path.isabs(value))):
        return value
    match value:
        case list():
            return [_start_from(workdir, item) for item in value]
        case pathlib.Path():
            return workdir / value
        case PathOrUrl():
            return value if scheme(value) else os.path.join(workdir, value)
        case PathOrName() if scheme(value) is None and (workdir / value).exists():
            return workdir / value
    return value


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows messages of this package from level INFO, those of other libraries from level WARNING."""
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
    """Returns what JSON can hold: arrays and their scalars as numbers, the rest (paths) as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
