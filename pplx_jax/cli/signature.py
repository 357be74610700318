"""Default values of a function's parameters, read from its source without importing it.

Importing the function of a verb would import JAX, and `--help` has to be instant.
"""

import ast
import functools
import pathlib
import types
from typing import Any

import pplx_jax

_ROOT = pathlib.Path(pplx_jax.__file__).parent.parent


def defaults(target: str) -> dict[str, Any]:
    """Returns the defaults of the parameters of a function, or of the fields of a dataclass.

    Args:
        target: "module:name".

    Returns:
        {parameter: value}. A default that is computed by a call is left out. Empty if the module is not in this
        package.
    """
    module, _, name = target.partition(":")
    scope = _Scope(module)
    match scope.nodes.get(name):
        case ast.FunctionDef(args=arguments):
            positional = [*arguments.posonlyargs, *arguments.args]
            given = positional[len(positional) - len(arguments.defaults) :] + arguments.kwonlyargs
            nodes = zip(given, [*arguments.defaults, *arguments.kw_defaults], strict=True)
            return scope.values({argument.arg: node for argument, node in nodes})
        case ast.ClassDef() as node:
            return scope.fields(node)
    return {}


class _Scope:
    """The names of a module: its constants, classes and functions, and what it imports from this package."""

    def __init__(self, module: str):
        self.nodes: dict[str, ast.AST] = {}
        self._imported: dict[str, tuple[str, str]] = {}
        for node in _tree(module).body:
            match node:
                case ast.ImportFrom(module=str(source), names=aliases):
                    self._imported |= {alias.asname or alias.name: (source, alias.name) for alias in aliases}
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.nodes[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.AST() as value):
                    self.nodes[name] = value
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    self.nodes[name] = node

    def __getitem__(self, name: str) -> Any:
        if name in self._imported:
            module, name = self._imported[name]
            return _Scope(module)[name]
        node = self.nodes[name]
        if isinstance(node, ast.ClassDef):
            return types.SimpleNamespace(**self.fields(node))
        return self._value(node)

    def fields(self, node: ast.ClassDef) -> dict[str, Any]:
        """Returns the values of a class's annotated attributes."""
        return self.values({each.target.id: each.value for each in node.body
                            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)})  # fmt: skip

    def values(self, nodes: dict[str, ast.AST | None]) -> dict[str, Any]:
        """Evaluates the nodes; leaves out those that have no constant value."""
        found = {}
        for name, node in nodes.items():
            try:
                found[name] = self._value(node)
            except (NameError, TypeError, AttributeError, ValueError):
                continue
        return found

    def _value(self, node: ast.AST | None) -> Any:
        """Evaluates an expression of constants; a call raises TypeError or NameError."""
        if not isinstance(node, ast.expr):
            raise ValueError("no expression")
        # The source is this package's own, and no built-in function can be called.
        return eval(ast.unparse(node), {"__builtins__": {}}, self)  # type: ignore[arg-type]


@functools.cache
def _tree(module: str) -> ast.Module:
    file = _ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")
