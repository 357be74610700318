"""Finds what the names in a recipe stand for, and registers it with gin. Only what a recipe mentions is imported."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gin

from pplx_jax.configuration.statements import MACRO, Binding, Import, Reference, leaves, replace_leaves
from pplx_jax.configuration.table import Table, import_name
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest

_registered_here: set[str] = set()  # gin cannot forget a name; a later recipe must still import it to use it


@dataclasses.dataclass(frozen=True)
class Target:
    """A class or function that a recipe names.

    Attributes:
        name: how the recipe spells it first.
        configurable: gin's record of it.
        is_verb: whether it is a function of the command line.
        decorated: whether its module registered it (`@gin.configurable`), so that every call of it takes bindings.
    """

    name: str
    configurable: gin.config.Configurable
    is_verb: bool = False
    decorated: bool = False

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters in the order of the signature, without `*args` and `**kwargs`."""
        return {name: each for name, each in self._signature.items() if each.kind not in _VARIADIC}

    @property
    def takes_any(self) -> bool:
        """Whether it has `**kwargs`."""
        return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in self._signature.values())

    @functools.cached_property
    def _signature(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.configurable.wrapped).parameters


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Names:
    """The names that one recipe may use: those of a table, those it imports, those that imported modules register."""

    def __init__(self, table: Table, imports: Iterable[Import]):
        self._table = table
        self._imported: dict[str, Any] = {}
        self._targets: dict[str, Target] = {}  # by gin's complete name
        self._by_spelling: dict[str, Target] = {}
        for statement, place in imports:
            module, _, name = statement.module.rpartition(".") if statement.is_from else (statement.module, "", "")
            if module == "__gin__":
                continue  # `dynamic_registration`: here every import registers what the recipe mentions
            try:
                imported = import_name(module, name)
                if not (statement.is_from or statement.alias):
                    imported = import_name(statement.bound_name())  # `import a.b` binds `a`
            except BadInput as error:
                raise BadInput(f"{place}: {error}") from error
            if self._imported.setdefault(statement.bound_name(), imported) is not imported:
                raise BadInput(f"{place}: {statement.bound_name()} is imported twice; rename one with `as`")

    def __getitem__(self, name: str) -> Target:
        """Returns what a name stands for that `resolve` has met."""
        return self._by_spelling[name]

    def resolve(self, bindings: Sequence[Binding]) -> list[Binding]:
        """Registers every name in the bindings and returns them with one spelling for each class or function.

        Raises:
            BadInput: a name is unknown, or has no such parameter.
        """
        return [self._resolve(binding) for binding in bindings]

    def _resolve(self, binding: Binding) -> Binding:
        try:
            name = binding.name
            if name != MACRO:
                target = self._find(name, [*self._table.verbs, *self._table.parts])
                if binding.parameter not in target.parameters and not target.takes_any:
                    hint = nearest(binding.parameter, target.parameters) or f"; it has {', '.join(target.parameters)}"
                    raise BadInput(f"{name} has no parameter {binding.parameter}{hint}")
                name = target.name
            return dataclasses.replace(binding, name=name, value=replace_leaves(binding.value, self._resolve_leaf))
        except BadInput as error:
            raise BadInput(f"{binding.place}: {error}") from error

    def _resolve_leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Reference) and leaf.name != MACRO:
            return leaf._replace(name=self._find(leaf.name, self._table.parts).name)
        return leaf

    def _find(self, spelled: str, short_names: Iterable[str]) -> Target:
        """Returns what `spelled` stands for; `short_names` are those of the table that are allowed here."""
        first = spelled.partition(".")[0]
        if first not in self._imported and spelled in self._table.verbs and spelled not in short_names:
            raise BadInput(f"nothing is called {spelled}")
        if spelled in self._by_spelling:
            return self._by_spelling[spelled]
        is_verb = False
        if first in self._imported:
            configurable = self._register(self._attribute(spelled), spelled)
        elif spelled in short_names:
            configurable, is_verb = self._register(self._table.target(spelled), spelled), spelled in self._table.verbs
        else:
            configurable = _known_to_gin(spelled)
            if configurable is None or configurable.selector in _registered_here:
                raise BadInput(f"nothing is called {spelled}{nearest(spelled, [*short_names, *self._imported])}")
        decorated = configurable.selector not in _registered_here
        target = self._targets.setdefault(configurable.selector, Target(spelled, configurable, is_verb, decorated))
        self._by_spelling[spelled] = target
        return target

    def _attribute(self, spelled: str) -> Any:
        """Follows the dots of an imported name."""
        first, *rest = spelled.split(".")
        found = self._imported[first]
        for name in rest:
            if not hasattr(found, name):
                raise BadInput(f"nothing is called {spelled}{nearest(name, dir(found))}")
            found = getattr(found, name)
        return found

    @staticmethod
    def _register(found: Any, spelled: str) -> "gin.config.Configurable":
        """Returns gin's record of a class or function, and registers it if its module has not."""
        if isinstance(found, types.ModuleType) or not callable(found):
            raise BadInput(f"{spelled} is not a class or function")
        module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", spelled)
        if "<" in name:  # defined inside a function
            name = found.__name__
        selector = f"{module}.{name}" if module else name
        known = _known_to_gin(selector)
        if known is not None and (found is known.wrapped or found is known.wrapper):
            return known
        try:
            with gin.config.interactive_mode():  # another class may have had this name before
                gin.external_configurable(found, name=selector)
        except (TypeError, ValueError) as error:
            raise BadInput(f"gin cannot use {spelled}: {str(error).splitlines()[0]}") from error
        _registered_here.add(selector)
        registered = _known_to_gin(selector)
        assert registered is not None
        return registered


def _known_to_gin(selector: str) -> "gin.config.Configurable | None":
    """Returns gin's record of a name, complete or not."""
    try:
        return gin.config.ConfigurableReference(selector, False).configurable
    except ValueError:
        return None
    except KeyError as error:
        raise BadInput(str(error.args[0])) from error  # it fits several names


def bind(bindings: Iterable[Binding], names: Names) -> None:
    """Gives bindings to gin.

    Raises:
        BadInput: gin refuses one, such as a parameter that its module has put on the denylist.
    """

    def to_gin(leaf: Any) -> Any:
        if not isinstance(leaf, Reference):
            return leaf
        if leaf.name == MACRO:
            return gin.config.ParserDelegate().macro(leaf.scope)
        selector = names[leaf.name].configurable.selector
        return gin.config.ConfigurableReference(f"{leaf.scope}/{selector}" if leaf.scope else selector, leaf.called)

    for each in bindings:
        selector = MACRO if each.name == MACRO else names[each.name].configurable.selector
        try:
            gin.bind_parameter((each.scope, selector, each.parameter), replace_leaves(each.value, to_gin))
        except ValueError as error:
            raise BadInput(f"{each.place}: {str(error).splitlines()[0]}") from error


def is_constant(macro: str) -> bool:
    """Returns whether a macro is a constant that a module defines (`gin.constant`), or `gin.REQUIRED`."""
    return gin.config.ParserDelegate().macro(macro).selector != MACRO


def references(bindings: Iterable[Binding]) -> list[tuple[Reference, Binding]]:
    """Returns every reference in the bindings, macros included, each with the binding that holds it."""
    return [(leaf, each) for each in bindings for leaf in leaves(each.value) if isinstance(leaf, Reference)]
