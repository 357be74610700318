"""What is refused in a recipe. Every function raises BadInput with one line that names file and line.

- a name, parameter or macro that does not exist, with the nearest one that does;
- a macro that nothing uses, and a binding for something that the recipe never refers to;
- a binding of the command line that a scoped one of a file overrides everywhere;
- a value that is required and that nobody set;
- a literal of another type than its field declares, and a reference to what is no such thing.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from pplx_jax.configuration.instances import Instance, reachable, winners, without_macros
from pplx_jax.configuration.statements import MACRO, REQUIRED, Binding, Macro, Reference, leaves
from pplx_jax.configuration.table import Table
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest


def check_names(bindings: Sequence[Binding], table: Table) -> None:
    """Every bound and every referenced name is in the table, with that parameter."""
    for binding in bindings:
        if binding.name != MACRO:
            _check_name(binding, binding.name, table.names)
            parameters = table.parameters(binding.name)
            open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
            if binding.parameter not in parameters and not open_ended:
                hint = nearest(binding.parameter, parameters) or f"; it has {', '.join(parameters)}"
                raise BadInput(f"{binding.place}: {binding.name} has no parameter {binding.parameter}{hint}")
        for leaf in leaves(binding.value):
            if isinstance(leaf, Reference):
                _check_name(binding, leaf.name, list(table.parts))
                if not leaf.called:
                    raise BadInput(f"{binding.place}: {leaf!r} is never called; write {leaf!r}()")


def _check_name(binding: Binding, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise BadInput(f"{binding.place}: nothing is called {name}{nearest(name, known)}")


def check_macros(bindings: Sequence[Binding]) -> None:
    """Every macro that is used is defined, and every macro that is defined is used."""
    defined = {binding.scope: binding for binding in bindings if binding.name == MACRO}
    used = {
        leaf.name: binding
        for binding in bindings
        for leaf in leaves(binding.value)
        if isinstance(leaf, Macro) and leaf != REQUIRED
    }
    for name, binding in used.items():
        if name not in defined:
            hint = nearest(name, defined)
            raise BadInput(f"{binding.place}: {binding.key} uses %{name}, a macro that nobody defines{hint}")
    for name, binding in defined.items():
        if name not in used:
            raise BadInput(f"{binding.place}: the macro {name} is never used{nearest(name, used)}")


def check_reached(bindings: Sequence[Binding], verbs: Sequence[str]) -> None:
    """Every binding applies to something that the recipe refers to."""
    instances = reachable(bindings, verbs)
    for binding in bindings:
        if binding.name == MACRO or any(_applies(binding, instance) for instance in instances):
            continue
        owner = f"{binding.scope}/{binding.name}" if binding.scope else binding.name
        hint = nearest(owner, [str(instance) for instance in instances if instance.name != MACRO])
        raise BadInput(f"{binding.place}: {binding.key} sets nothing: nothing refers to {owner}{hint}")


def check_params(bindings: Sequence[Binding], instances: Sequence[Instance]) -> None:
    """Every binding of the command line has an effect, but where another one there overrides it.

    One in a file may be a general default that every scope overrides, and a stage may be left out.
    """
    won = {binding.key for instance in instances for binding in instance.bindings.values()}
    standing = winners(bindings)
    for binding in standing:
        if not binding.is_param or binding.key in won:
            continue
        uses = [binding] if binding.name != MACRO else [b for b in standing if Macro(binding.scope) in leaves(b.value)]
        rivals = {rival.key: rival for use in uses for rival in _applied_instead(use, instances)}
        if not all(rival.is_param for rival in rivals.values()):
            told = ", ".join(f"{key} ({rival.place})" for key, rival in rivals.items())
            verb, write = ("wins", "write that") if len(rivals) == 1 else ("win", "write those")
            raise BadInput(f"{binding.place}: {binding.key} sets nothing: {told} {verb}; {write}")


def _applied_instead(binding: Binding, instances: Sequence[Instance]) -> list[Binding]:
    """What wins where `binding` applies."""
    return [each.bindings[binding.parameter] for each in instances if _applies(binding, each)]


def _applies(binding: Binding, instance: Instance) -> bool:
    outer = f"{binding.scope}/" if binding.scope else ""
    return binding.name == instance.name and f"{instance.scope}/".startswith(outer)


def check_required(instances: Sequence[Instance], table: Table) -> None:
    """Every parameter without a default is bound, and nothing is left at `%gin.REQUIRED`."""
    for instance in instances:
        for binding in instance.bindings.values():
            if REQUIRED in leaves(binding.value):
                owner = instance if instance.name == MACRO else f"{instance}.{binding.parameter}"
                raise BadInput(f"{binding.place}: {owner} is required and no gin file or --gin_param sets it")
        if instance.name in table.verbs or instance.name == MACRO:
            continue  # a verb gets the rest of its parameters from the command line
        for name, parameter in table.parameters(instance.name).items():
            variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            optional = variadic or parameter.default is not inspect.Parameter.empty
            if not optional and name not in instance.bindings:
                raise BadInput(f"{instance.place}: {instance}.{name} has no default and nobody sets it")


def check_types(instances: Sequence[Instance], table: Table) -> None:
    """Every literal and every reference suits the annotation of its field."""
    macros = {instance.scope: instance for instance in instances if instance.name == MACRO}
    for instance in instances:
        hints = {} if instance.name == MACRO else _hints(table.target(instance.name))
        for binding in instance.bindings.values():
            value, hint = without_macros(binding.value, macros), hints.get(binding.parameter)
            if not _holds(hint, value, table):
                wanted = hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))
                raise BadInput(f"{binding.place}: {binding.key} wants {wanted}, got {value!r}")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target)
    except NameError:  # an annotation that exists for the type checker only
        return {}


def _holds(hint: Any, value: Any, table: Table) -> bool:
    """Whether a field declared as `hint` may hold `value`; unfamiliar hints may hold anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_holds(option, value, table) for option in typing.get_args(hint))
    if isinstance(value, Reference):
        return _gives(table.target(value.name), origin or hint)
    if origin is Sequence:
        [item] = typing.get_args(hint)
        return isinstance(value, list | tuple) and all(_holds(item, each, table) for each in value)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    for kind in (bool, str, list, tuple, dict):
        if kind in (hint, origin):
            return isinstance(value, kind)
    return not dataclasses.is_dataclass(hint) and not _is_protocol(hint)


def _gives(target: Callable[..., Any], kind: Any) -> bool:
    """Whether what a reference to `target` gives may be a `kind`; a function may give anything."""
    if kind is Any or not isinstance(target, type) or not isinstance(kind, type):
        return True
    if _is_protocol(kind):
        methods = (name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name)))
        return all(hasattr(target, name) for name in methods)
    ours = dataclasses.is_dataclass(target) or dataclasses.is_dataclass(kind)
    return not ours or issubclass(target, kind)


def _is_protocol(hint: Any) -> bool:
    return isinstance(hint, type) and typing.Protocol in hint.__bases__
