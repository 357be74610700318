"""Gin files to a flat list of bindings, each with the file and line it came from."""

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
# The current folder first, so that a user's own file wins over a shipped one of the same name.
SEARCH_PATHS = (pathlib.Path(), PACKAGE.parent, PACKAGE)

PARAM = "--gin_param"
MACRO = "macro"  # gin keeps the macro NAME as the parameter `value` of `gin.macro` in the scope NAME


class Place(NamedTuple):
    """Where a statement stands; `--gin_param:2` is the second such flag."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Reference(NamedTuple):
    """`@scope/name()`; without the parentheses it is not `called`."""

    scope: str
    name: str
    called: bool = True

    def __repr__(self) -> str:
        scope, call = f"{self.scope}/" if self.scope else "", "()" if self.called else ""
        return f"@{scope}{self.name}{call}"


class Macro(NamedTuple):
    """`%name`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


REQUIRED = Macro("gin.REQUIRED")


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/name.parameter = value`, or the macro `scope = value` (then `name` is MACRO)."""

    scope: str
    name: str
    parameter: str
    value: Any
    place: Place | None = None  # None: the default of the dataclass

    @property
    def key(self) -> str:
        """The left side, as a gin file spells it."""
        if self.name == MACRO:
            return self.scope
        return f"{self.scope}/{self.name}.{self.parameter}" if self.scope else f"{self.name}.{self.parameter}"

    @property
    def is_param(self) -> bool:
        """Whether the command line gave it."""
        return self.place is not None and self.place.file == PARAM


class Import(NamedTuple):
    """`from module import name`."""

    module: str
    name: str
    place: Place


def leaves(value: Any) -> Iterator[Any]:
    """Every scalar, reference and macro inside a bound value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, list | tuple) and not isinstance(value, Reference | Macro):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def replace_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with every leaf replaced by `function(leaf)`."""
    if isinstance(value, dict):
        return {replace_leaves(k, function): replace_leaves(v, function) for k, v in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Reference | Macro):
        return type(value)(replace_leaves(item, function) for item in value)
    return function(value)


class _Delegate(config_parser.ParserDelegate):
    """Keeps references and macros as data, where gin's own delegate would look them up at once."""

    # gin's delegate has no annotations, so its placeholders seem to return None.
    def configurable_reference(  # type: ignore[override]
        self, scoped_configurable_name: str, evaluate: bool
    ) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:  # type: ignore[override]
        return REQUIRED if macro_name in ("REQUIRED", "gin.REQUIRED") else Macro(macro_name)


def parse_value(text: str) -> Any:
    """Parses the right side of a binding.

    Raises:
        SyntaxError: `text` is no gin value.
    """
    return config_parser.ConfigParser(text, _Delegate()).parse_value()


def read(
    files: Sequence[str],
    params: Sequence[str],
    search_paths: Sequence[pathlib.Path] = SEARCH_PATHS,
    defaults: Sequence[str] = (),
) -> tuple[list[Binding], list[Import]]:
    """Reads defaults, files with their includes, and the command line's bindings, in the order gin would apply them.

    Raises:
        BadInput: a file is missing, unreadable or includes itself, or a statement does not parse.
    """
    reader = _Reader(tuple(pathlib.Path(path) for path in search_paths))
    for number, statement in enumerate(defaults, start=1):
        reader.text("default", statement, first_line=number)
    for file in files:
        reader.file(str(file), included_at=None)
    for number, param in enumerate(params, start=1):
        reader.text(PARAM, param, first_line=number)
    return reader.bindings, reader.imports


class _Reader:
    """Collects statements; `file` recurses into includes."""

    def __init__(self, search_paths: tuple[pathlib.Path, ...]):
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
                    self.imports.append(_import(statement, place))
                case config_parser.BindingStatement(scope, selector, "", value):
                    macro = f"{scope}/{selector}" if scope else selector
                    self.bindings.append(Binding(macro, MACRO, "value", value, place))
                case config_parser.BindingStatement(scope, selector, parameter, value):
                    self.bindings.append(Binding(scope, selector, parameter, value, place))
                case config_parser.BlockDeclaration():
                    pass  # its bindings follow as statements of their own

    def _shipped(self) -> list[str]:
        found = ((folder, path) for folder in self.search_paths for path in folder.glob("gin/**/*.gin"))
        return sorted({str(path.relative_to(folder)) for folder, path in found})


def _import(statement: config_parser.ImportStatement, place: Place) -> Import:
    module, _, name = statement.module.rpartition(".")
    if not statement.is_from or statement.alias or module == "__gin__":
        raise BadInput(f"{place}: a recipe imports by `from module import Name`, nothing else")
    return Import(module, name, place)


def _statements(label: str, text: str, first_line: int) -> Iterator[Any]:
    """Yields parsed statements; whatever the parser says against one becomes BadInput."""
    try:
        parser = config_parser.ConfigParser(io.StringIO(text), _Delegate())
        while statement := parser.parse_statement():
            yield statement
    except SyntaxError as error:
        # The parser's token errors put Python's complaint first and the token in the last line.
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
