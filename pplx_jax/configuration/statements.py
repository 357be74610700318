"""Reads gin files into a list of bindings, each with the file and line it came from."""

import dataclasses
import io
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

import gin
from gin import config_parser

from pplx_jax.configuration.names import MACRO, Names, Reference, Target
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest

PACKAGE = pathlib.Path(__file__).parents[1]
# The current folder first, so that a user's file wins over a shipped one of the same name. The shipped files are next
# to the package in a checkout and inside it in a wheel.
SEARCH_PATHS = (pathlib.Path(), PACKAGE.parent, PACKAGE)

PARAM = "--gin_param"


@dataclasses.dataclass(frozen=True, eq=False)
class Binding:
    """`scope/target.parameter = value`, or the macro `scope = value`.

    Attributes:
        place: "file:line"; "--gin_param:2" for the second such flag; None for a default of the class or function.
    """

    scope: str
    target: Target
    parameter: str
    value: Any
    place: str | None = None

    @property
    def key(self) -> str:
        """The left side, as it is written in a gin file."""
        if self.target.is_macro:
            return self.scope
        return f"{self.owner}.{self.parameter}"

    @property
    def owner(self) -> str:
        """The left side without the parameter."""
        return f"{self.scope}/{self.target.name}" if self.scope else self.target.name

    @property
    def is_param(self) -> bool:
        """Whether it comes from the command line."""
        return self.place is not None and self.place.startswith(f"{PARAM}:")

    @property
    def references(self) -> list[Reference]:
        """The references inside the value, macros included."""
        return [each for each in gin.config.iterate_references(self.value) if isinstance(each, Reference)]

    @property
    def is_required(self) -> bool:
        """Whether the value is, or contains, `%gin.REQUIRED`."""
        return any(each.scopes == ["gin.REQUIRED"] for each in gin.config.iterate_references(self.value))

    def applies(self, scope: str, target: Target) -> bool:
        """Whether it reaches `scope/target`, unless another binding overrides it."""
        outer = f"{self.scope}/" if self.scope else ""
        return self.target is target and f"{scope}/".startswith(outer)


def read(
    files: Sequence[str],
    params: Sequence[str],
    search_paths: Sequence[pathlib.Path],
    defaults: Sequence[str],
    names: Names,
) -> list[Binding]:
    """Reads defaults, then files with their includes, then the bindings of the command line: the order of gin.

    Raises:
        BadInput: a file is missing, unreadable or includes itself, a statement does not parse, or a name is unknown.
    """
    reader = _Reader([pathlib.Path(path) for path in search_paths], names)
    for number, statement in enumerate(defaults, start=1):
        reader.text("default", statement, first_line=number)
    for file in files:
        reader.file(str(file), where="")
    for number, param in enumerate(params, start=1):
        reader.text(PARAM, param, first_line=number)
    return reader.bindings


class _Reader(gin.config.ParserDelegate):
    """Collects bindings; `file` calls itself for includes."""

    def __init__(self, search_paths: Sequence[pathlib.Path], names: Names):
        super().__init__()
        self.bindings: list[Binding] = []
        self._search_paths = search_paths
        self._names = names
        self._open: list[pathlib.Path] = []

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Reference:
        """Called by gin's parser for every `@scope/name`."""
        scope, _, name = scoped_selector.rpartition("/")
        return Reference(scope, self._names.target(name, verbs=False), evaluate)

    def macro(self, name: str) -> gin.config.ConfigurableReference:
        """Called by gin's parser for every `%name`."""
        found = super().macro(name)  # a macro, or a constant that a module defines
        return Reference(name, MACRO, True) if found.selector == MACRO.record.selector else found

    def file(self, name: str, where: str) -> None:
        path = next((folder / name for folder in self._search_paths if (folder / name).is_file()), None)
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
        for statement in self._statements(label, text, first_line):
            place = f"{label}:{statement.location.line_num + first_line - 1}"
            if isinstance(statement, config_parser.IncludeStatement):
                self.file(statement.filename, where=f"{place}: ")
                continue
            try:
                self._add(statement, place)
            except BadInput as error:
                raise BadInput(f"{place}: {error}") from error

    def _add(self, statement: Any, place: str) -> None:
        match statement:
            case config_parser.ImportStatement():
                self._names.add(statement, place)
            case config_parser.BindingStatement(scope, selector, "", value):
                macro = f"{scope}/{selector}" if scope else selector
                self.bindings.append(Binding(macro, MACRO, "value", value, place))
            case config_parser.BindingStatement(scope, selector, parameter, value):
                target = self._names.target(selector)
                if not target.accepts(parameter):
                    hint = nearest(parameter, target.parameters) or f"; it has {', '.join(target.parameters)}"
                    raise BadInput(f"{selector} has no parameter {parameter}{hint}")
                self.bindings.append(Binding(scope, target, parameter, value, place))

    def _statements(self, label: str, text: str, first_line: int) -> Iterator[Any]:
        """Yields parsed statements; an error of the parser becomes BadInput."""
        lines = text.splitlines()
        parser = None
        try:
            parser = config_parser.ConfigParser(io.StringIO(text), self)
            while statement := parser.parse_statement():
                yield statement
            return
        except SyntaxError as error:
            # For a bad token, Python's message comes first and the token is in the last line.
            problem, line = str(error.msg).splitlines()[-1].strip(), min(error.lineno or 1, len(lines))
            problem = f"not a gin statement: `{lines[line - 1].strip()}`: {problem}"
        except tokenize.TokenError as error:
            line = min(error.args[1][0], len(lines))
            problem = f"not a gin statement: `{lines[line - 1].strip()}`: {error.args[0]}"
        except (BadInput, ValueError) as error:  # from a reference; gin adds lines of its own
            assert parser is not None
            problem, line = str(error).splitlines()[0], parser.current_token.start[0]
        raise BadInput(f"{label}:{line + first_line - 1}: {problem}")

    def _shipped(self) -> list[str]:
        found = ((folder, path) for folder in self._search_paths for path in folder.glob("gin/**/*.gin"))
        return sorted({str(path.relative_to(folder)) for folder, path in found})
