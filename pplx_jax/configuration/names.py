"""What the names in a recipe stand for. Only what a recipe mentions is imported and registered with gin."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

import gin
from gin import config_parser

from pplx_jax.configuration.table import Table, import_name
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest

_registered_here: set[str] = set()  # gin cannot forget a name, but another recipe must still import it to use it


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A class or function that a recipe names.

    Attributes:
        name: how the recipe spells it first.
        record: what gin knows of it.
        called_anywhere: whether its module registered it (`@gin.configurable`), so that every call takes bindings.
    """

    name: str
    record: gin.config.Configurable
    called_anywhere: bool = False

    @property
    def call(self) -> Any:
        """The class or function, without gin's wrapper."""
        return self.record.wrapped

    @property
    def is_macro(self) -> bool:
        """In gin, the macro NAME is the parameter `value` of `gin.macro` in the scope NAME."""
        return self.record.selector == "gin.macro"

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters that may be bound, in the order of the signature; `**kwargs` is one."""
        allowed, denied = self.record.allowlist, self.record.denylist or ()
        return {
            name: each
            for name, each in inspect.signature(self.call).parameters.items()
            if each.kind is not each.VAR_POSITIONAL and name not in denied and (not allowed or name in allowed)
        }

    def accepts(self, parameter: str) -> bool:
        """Whether a recipe may bind a parameter."""
        takes_any = any(each.kind is each.VAR_KEYWORD for each in self.parameters.values())
        return parameter in self.parameters or takes_any

    @functools.cached_property
    def defaults(self) -> Mapping[str, Any]:
        """The parameters whose defaults can be written in a gin file, with these."""
        return {name: each.default for name, each in self.parameters.items() if _is_literal(each.default)}

    @property
    def without_default(self) -> list[str]:
        """The parameters that must be bound."""
        unset = (inspect.Parameter.empty, gin.REQUIRED)
        return [
            name
            for name, each in self.parameters.items()
            if each.kind is not each.VAR_KEYWORD and any(each.default is one for one in unset)
        ]


def _is_literal(value: Any) -> bool:
    if not isinstance(value, bool | int | float | str | tuple | list | dict | None):
        return False
    try:
        return gin.config.parse_value(repr(value)) == value
    except SyntaxError:  # an infinity, or something else inside a container
        return False


def _known_to_gin(name: str) -> Any:
    """Returns gin's record of a name, which may lack leading modules; None if there is none."""
    try:
        return gin.config.ConfigurableReference(name, False).configurable
    except ValueError:
        return None
    except KeyError as error:
        raise BadInput(str(error.args[0])) from error  # it fits several names


MACRO = Target("macro", _known_to_gin("gin.macro"))


class Reference(gin.config.ConfigurableReference):
    """gin's reference, printed with the name that the recipe uses."""

    def __init__(self, scope: str, target: Target, evaluate: bool):
        self.target = target
        selector = target.record.selector
        super().__init__(f"{scope}/{selector}" if scope else selector, evaluate)

    @property
    def selector(self) -> str:
        """The name that is printed."""
        return self.target.name

    def called(self) -> "Reference":
        """Returns `@Name()` for `@Name`."""
        return Reference("/".join(self.scopes), self.target, True)


class Names:
    """The names that one recipe may use: those of a table, those it imports, those that imported modules register.

    Attributes:
        imports: the import statements, each with the place of the first one.
    """

    def __init__(self, table: Table):
        self.imports: dict[str, str] = {}
        self._table = table
        self._verbs, self._parts = ([path.partition(":")[2] for path in paths] for paths in table)
        self._imported: dict[str, Any] = {}
        self._targets = {MACRO.record.selector: MACRO}  # by complete name

    def add(self, statement: config_parser.ImportStatement, place: str) -> None:
        """Carries out an import.

        Raises:
            BadInput: a module is not installed or has no such name, or the name is taken.
        """
        module, _, name = statement.module.rpartition(".") if statement.is_from else (statement.module, "", "")
        if module == "__gin__":
            return  # `dynamic_registration`: every import already makes its names available
        imported, bound = import_name(module, name), statement.bound_name()
        if not (statement.is_from or statement.alias):
            imported = import_name(bound)  # `import a.b` binds `a`
        if self._imported.setdefault(bound, imported) is not imported:
            raise BadInput(f"{bound} is imported twice; rename one with `as`")
        self.imports.setdefault(statement.format(), place)

    @property
    def verbs(self) -> list[Target]:
        """The functions of the command line that the recipe binds."""
        met = {target.name: target for target in self._targets.values()}
        return [met[name] for name in self._verbs if name in met]

    def target(self, name: str, *, verbs: bool = True) -> Target:
        """Returns what a name stands for, and registers it with gin.

        Raises:
            BadInput: there is no such name.
        """
        short_names = [*(self._verbs if verbs else ()), *self._parts]
        if name.partition(".")[0] in self._imported:
            return self._registered(name, self._attribute(name))
        if name in short_names:
            return self._registered(name, self._table.target(name))
        known = None if name in self._verbs else _known_to_gin(name)
        if known is None or known.selector in _registered_here:
            raise BadInput(f"nothing is called {name}{nearest(name, [*short_names, *self._imported])}")
        return self._remembered(name, known)

    def _attribute(self, dotted: str) -> Any:
        first, *rest = dotted.split(".")
        found = self._imported[first]
        for name in rest:
            if not hasattr(found, name):
                module = dotted.rpartition(".")[0]
                known = [f"{module}.{each}" for each in dir(found)]
                raise BadInput(f"nothing is called {dotted}{nearest(dotted, known)}")
            found = getattr(found, name)
        return found

    def _registered(self, name: str, found: Any) -> Target:
        if isinstance(found, types.ModuleType) or not callable(found):
            raise BadInput(f"{name} is not a class or function")
        qualified = getattr(found, "__qualname__", name).rpartition("<locals>.")[2]
        module = getattr(found, "__module__", None)
        selector = f"{module}.{qualified}" if module else qualified
        known = _known_to_gin(selector)
        if known is None or (found is not known.wrapped and found is not known.wrapper):
            try:
                with gin.config.interactive_mode():  # another class may have had this name before
                    gin.external_configurable(found, name=selector)
            except (TypeError, ValueError) as error:
                raise BadInput(f"gin cannot use {name}: {str(error).splitlines()[0]}") from error
            _registered_here.add(selector)
            known = _known_to_gin(selector)
        return self._remembered(name, known)

    def _remembered(self, name: str, known: gin.config.Configurable) -> Target:
        return self._targets.setdefault(known.selector, Target(name, known, known.selector not in _registered_here))
