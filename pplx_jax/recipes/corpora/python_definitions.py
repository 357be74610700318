"""Finds the definitions of a Python file: the summary of the docstring, and the code without docstrings."""

import ast
import dataclasses
import os
import re
import tokenize
import warnings
from collections.abc import Iterator

from pplx_jax.recipes.corpora.docstrings import summary

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function, method or class with a usable docstring.

    Attributes:
        name: the qualified name within the module, such as `Class.method`.
        line: the first line in the file, including decorators, from 1.
        summary: the first paragraph of the docstring, on one line without markup.
        text: the source of the definition, dedented, without docstrings.
        owner: the qualified name of the class of a method; empty for functions and classes.
    """

    name: str
    line: int
    summary: str
    text: str
    owner: str = ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed file.

    Attributes:
        source: its text.
        definitions: the documented ones, in source order.
        heads: qualified name of a class -> its source before the first definition in it, dedented, without docstring.
        methods: if asked for, all methods with code, in source order. The summary of one without a usable docstring is
            its name in words.
    """

    source: str
    definitions: tuple[Definition, ...]
    heads: dict[str, str]
    methods: tuple[Definition, ...] = ()


def read_module(path: str | os.PathLike[str], *, methods: bool = False) -> Module | None:
    """Parses a file. Returns None if the running interpreter cannot read it as Python."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        return parse_module(source, methods=methods)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parse_module(source: str, *, methods: bool = False) -> Module:
    """Parses source text, with all methods if `methods`.

    Raises:
        SyntaxError, ValueError, RecursionError: the text is not Python, holds null bytes, or nests too deep.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in strings
        tree = ast.parse(source)
    text, heads = _Text(source), {}
    definitions, all_methods = [], []
    for name, owner, node in _nodes(tree, ""):
        is_class = isinstance(node, ast.ClassDef)
        if is_class:
            heads[name] = text.head(node)
        if _is_stub(node):
            continue
        docstring = ast.get_docstring(node, clean=False)
        query = summary(docstring) if docstring else None
        is_asked_for = methods and owner and not is_class and name_words(node.name)
        if query or is_asked_for:
            says = query or name_in_words(node.name)
            of_class = "" if is_class else owner
            definition = Definition(name, _first_line(node), says, text.definition(node), of_class)
            definitions += [definition] if query else []
            all_methods += [definition] if is_asked_for else []
    return Module(source, tuple(definitions), heads, tuple(all_methods))


def name_words(name: str) -> list[str]:
    """Splits an identifier at underscores and camelCase: HTTPServer_v2 -> HTTP, Server, v, 2."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)


def name_in_words(name: str) -> str:
    """Returns the words of an identifier as text: __getItem__ -> get item."""
    return " ".join(name_words(name)).lower()


def _nodes(node: ast.AST, owner: str) -> Iterator[tuple[str, str, _Definition]]:
    """Yields (qualified name, name of the class that it is in, node) of the definitions of a module or class.

    Also those below `if` and `try`, but not those local to a function.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            name = f"{owner}.{child.name}" if owner else child.name
            yield name, owner, child
            if isinstance(child, ast.ClassDef):
                yield from _nodes(child, name)
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _nodes(child, owner)


def _docstring(node: _Definition) -> ast.Expr | None:
    match node.body[0]:
        case ast.Expr(value=ast.Constant(value=str())) as first:
            return first
    return None


def _is_stub(node: _Definition) -> bool:
    """Returns whether a definition has no code except its docstring."""
    return all(
        isinstance(statement, ast.Pass)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in node.body
    )


def _first_line(node: _Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


# The end of a docstring's statement and, if only a comment follows, the rest of the line and the blank lines after it.
_AFTER_DOCSTRING = re.compile(rb"[ \t]*(?:;[ \t]*)?(?P<line>(?:#[^\n]*)?\n(?:[ \t\f]*\n)*)?")


class _Text:
    """Source text, cut at positions of the syntax tree, which count UTF-8 bytes within a line."""

    def __init__(self, source: str):
        self._bytes = source.encode()
        self._line_starts = [0]
        for line in self._bytes.split(b"\n"):
            self._line_starts.append(self._line_starts[-1] + len(line) + 1)

    def definition(self, node: _Definition) -> str:
        """Returns the source of a node: a function without docstrings, or a class as an outline (see `_cuts`)."""
        start = self._line_starts[_first_line(node) - 1] + node.col_offset
        pieces = []
        for cut, end, filling in self._cuts(node):
            pieces += [self._bytes[start:cut], filling]
            start = end
        pieces.append(self._bytes[start : self._end(node)])
        return _dedent(b"".join(pieces).decode(), node.col_offset).rstrip()

    def head(self, node: ast.ClassDef) -> str:
        """Returns the source of a class before its first definition, without the docstring."""
        start = self._line_starts[_first_line(node) - 1] + node.col_offset
        first = next(_inner_definitions(node), None)
        end = self._end(node) if first is None else self._line_starts[_first_line(first) - 1]
        docstring = _docstring(node)
        cut, after = self._docstring_range(docstring) if docstring else (end, end)
        head = self._bytes[start:cut] + self._bytes[after:end]
        return _dedent(head.decode(), node.col_offset).rstrip()

    def _cuts(self, node: _Definition) -> Iterator[tuple[int, int, bytes]]:
        """Yields (start, end, replacement) in order: docstrings, and in a class the bodies of documented methods.

        Such a method is a separate definition; its class contains only its signature.
        """
        if docstring := _docstring(node):
            if len(node.body) == 1:  # a body cannot be empty
                yield self._start(docstring), self._end(docstring), b"..."
            else:
                yield *self._docstring_range(docstring), b""
        outline = isinstance(node, ast.ClassDef)
        for child in _inner_definitions(node):
            if outline and not isinstance(child, ast.ClassDef) and _docstring(child):
                yield self._start(child.body[0]), self._end(child), b"..."
            else:
                yield from self._cuts(child)

    def _docstring_range(self, node: ast.Expr) -> tuple[int, int]:
        """Returns the range of the docstring, as whole lines if there is nothing else on them."""
        start, line_start = self._start(node), self._line_starts[node.lineno - 1]
        after = _AFTER_DOCSTRING.match(self._bytes, self._end(node))
        assert after
        whole_lines = after["line"] and not self._bytes[line_start:start].strip()
        return (line_start if whole_lines else start), after.end()

    def _start(self, node: ast.stmt) -> int:
        return self._line_starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None  # set by ast.parse
        return self._line_starts[node.end_lineno - 1] + node.end_col_offset


def _inner_definitions(node: ast.AST) -> Iterator[_Definition]:
    """Yields the nearest definitions below a node in source order, through any statements."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _inner_definitions(child)


def _dedent(text: str, width: int) -> str:
    """Removes `width` columns of indentation from every line that has them; lines of strings may have fewer."""
    if not width:
        return text
    first, *rest = text.split("\n")
    return "\n".join([first, *(line[width:] if not line[:width].strip() else line for line in rest)])
