"""Reads gin files into a flat list of statements, each with the file and line it came from."""

import dataclasses
import io
import pathlib
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gin import config_parser

from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest

PACKAGE = pathlib.Path(__file__).parents[1]
# The current folder first, so that a user's file wins over a shipped one of the same name. The shipped files are next
# to the package in a checkout and inside it in a wheel.
SEARCH_PATHS = (pathlib.Path(), PACKAGE.parent, PACKAGE)

PARAM = "--gin_param"
MACRO = "gin.macro"  # in gin, the macro NAME is the parameter `value` of `gin.macro` in the scope NAME


class Place(NamedTuple):
    """File and line of a statement; `--gin_param:2` is the second such flag."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Reference(NamedTuple):
    """`@scope/name()`, or `@scope/name` if it is not `called`. The macro `%X` is `@X/gin.macro()`, as in gin."""

    scope: str
    name: str
    called: bool = True

    def __repr__(self) -> str:
        if self.name == MACRO:
            return f"%{self.scope}"
        scope, call = f"{self.scope}/" if self.scope else "", "()" if self.called else ""
        return f"@{scope}{self.name}{call}"


REQUIRED = Reference("gin.REQUIRED", MACRO)


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/name.parameter = value`, or the macro `scope = value` (then `name` is MACRO)."""

    scope: str
    name: str
    parameter: str
    value: Any
    place: Place | None = None  # None: a default of the class or function

    @property
    def key(self) -> str:
        """The left side, as it is written in a gin file."""
        if self.name == MACRO:
            return self.scope
        return f"{self.scope}/{self.name}.{self.parameter}" if self.scope else f"{self.name}.{self.parameter}"

    @property
    def is_param(self) -> bool:
        """Whether it comes from the command line."""
        return self.place is not None and self.place.file == PARAM


class Import(NamedTuple):
    """An import statement of a gin file and its place."""

    statement: config_parser.ImportStatement
    place: Place


def leaves(value: Any) -> Iterator[Any]:
    """Yields every scalar and reference inside a bound value."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple) and not isinstance(value, Reference):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def replace_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Returns `value` with every leaf replaced by `function(leaf)`."""
    if isinstance(value, dict):
        return {replace_leaves(k, function): replace_leaves(v, function) for k, v in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Reference):
        return type(value)(replace_leaves(item, function) for item in value)
    return function(value)


class _Delegate(config_parser.ParserDelegate):
    """Keeps references as data, so that a file can be read without importing what it names."""

    # gin's delegate has no annotations, so its placeholders seem to return None.
    def configurable_reference(  # type: ignore[override]
        self, scoped_configurable_name: str, evaluate: bool
    ) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Reference:  # type: ignore[override]
        return REQUIRED if macro_name == "REQUIRED" else Reference(macro_name, MACRO)


def parse_value(text: str) -> Any:
    """Parses the right side of a binding.

    Raises:
        SyntaxError: `text` is not a gin value.
    """
    return config_parser.ConfigParser(text, _Delegate()).parse_value()


def read(
    files: Sequence[str],
    params: Sequence[str],
    search_paths: Sequence[pathlib.Path] = SEARCH_PATHS,
    defaults: Sequence[str] = (),
) -> tuple[list[Binding], list[Import]]:
    """Reads defaults, then files with their includes, then the bindings of the command line: the order of gin.

    Raises:
        BadInput: a file is missing, unreadable or includes itself, or a statement does not parse.
    """
    reader = _Reader([pathlib.Path(path) for path in search_paths])
    for number, statement in enumerate(defaults, start=1):
        reader.text("default", statement, first_line=number)
    for file in files:
        reader.file(str(file), included_at=None)
    for number, param in enumerate(params, start=1):
        reader.text(PARAM, param, first_line=number)
    return reader.bindings, reader.imports


class _Reader:
    """Collects statements; `file` calls itself for includes."""

    def __init__(self, search_paths: Sequence[pathlib.Path]):
        self.search_paths = search_paths
        self.bindings: list[Binding] = []
        self.imports: list[Import] = []
        self._open: list[pathlib.Path] = []

    def file(self, name: str, included_at: Place | None) -> None:
        where = f"{included_at}: " if included_at else ""
        path = next((folder / name for folder in self.search_paths if (folder / name).is_file()), None)
        if path is None:
            raise BadInput(f"{where}no gin file {name}{nearest(name, self._shipped())}")
        if path.resolve() in self._open:
            raise BadInput(f"{where}{name} includes itself")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{where}cannot read {name}: {error}") from error
        self._open.append(path.resolve())
        self.text(name, text)
        self._open.pop()

    def text(self, label: str, text: str, first_line: int = 1) -> None:
        for statement in _statements(label, text, first_line):
            place = Place(label, statement.location.line_num + first_line - 1)
            match statement:
                case config_parser.IncludeStatement():
                    self.file(statement.filename, included_at=place)
                case config_parser.ImportStatement():
                    self.imports.append(Import(statement, place))
                case config_parser.BindingStatement(scope, selector, "", value):
                    macro = f"{scope}/{selector}" if scope else selector
                    self.bindings.append(Binding(macro, MACRO, "value", value, place))
                case config_parser.BindingStatement(scope, selector, parameter, value):
                    self.bindings.append(Binding(scope, selector, parameter, value, place))
                case config_parser.BlockDeclaration():
                    pass  # its bindings follow as separate statements

    def _shipped(self) -> list[str]:
        found = ((folder, path) for folder in self.search_paths for path in folder.glob("gin/**/*.gin"))
        return sorted({str(path.relative_to(folder)) for folder, path in found})


def _statements(label: str, text: str, first_line: int) -> Iterator[Any]:
    """Yields parsed statements; an error of the parser becomes BadInput."""
    try:
        parser = config_parser.ConfigParser(io.StringIO(text), _Delegate())
        while statement := parser.parse_statement():
            yield statement
    except SyntaxError as error:
        # For a bad token, Python's message comes first and the token is in the last line.
        problem, line = str(error.msg).splitlines()[-1].strip(), error.lineno
    except tokenize.TokenError as error:
        problem, line = str(error.args[0]), error.args[1][0]
    else:
        return
    lines = text.splitlines()
    line = min(line or 1, len(lines))
    raise BadInput(
        f"{Place(label, line + first_line - 1)}: not a gin statement: `{lines[line - 1].strip()}`: {problem}"
    )
