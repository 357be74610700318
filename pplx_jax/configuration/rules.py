"""What is refused in a recipe, beside unknown names. Every message is one line with file and line.

- a macro that is not defined or not used, and a binding for something that the recipe never refers to;
- a binding of the command line that a scoped one of a file overrides everywhere;
- a required value that nothing sets;
- a literal of another type than its parameter declares, and a reference to another class.
"""

import re
from collections.abc import Sequence

from pplx_jax.configuration.instances import Instance, reach, without_macros
from pplx_jax.configuration.names import Reference, Target
from pplx_jax.configuration.statements import Binding
from pplx_jax.configuration.types import hints, suits
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest


def check_macros(bindings: Sequence[Binding]) -> None:
    """Refuses a macro that is used and not defined, and one that is defined and not used."""
    defined = {binding.scope: binding for binding in bindings if binding.target.is_macro}
    used = {
        "/".join(each.scopes): binding for binding in bindings for each in binding.references if each.target.is_macro
    }
    for name, binding in used.items():
        if name not in defined:
            hint = nearest(name, defined)
            raise BadInput(f"{binding.place}: {binding.key} uses %{name}, a macro that nothing defines{hint}")
    for name, binding in defined.items():
        if name not in used:
            raise BadInput(f"{binding.place}: the macro {name} is never used{nearest(name, used)}")


def check_used(bindings: Sequence[Binding], verbs: Sequence[Target]) -> None:
    """Refuses a binding for something that the recipe never refers to."""
    instances = reach(bindings, verbs, overridden=True)
    for binding in bindings:
        if binding.target.is_macro or any(binding.applies(each.scope, each.target) for each in instances):
            continue
        hint = nearest(binding.owner, [str(each) for each in instances if not each.target.is_macro])
        raise BadInput(f"{binding.place}: {binding.key} sets nothing: nothing refers to {binding.owner}{hint}")


def check_params(bindings: Sequence[Binding], instances: Sequence[Instance]) -> None:
    """Refuses a binding of the command line that has no effect, unless another one there overrides it.

    A binding of a file may be a general default that every scope overrides, and a stage may be left out.
    """
    winning = {binding.key for each in instances for binding in each.bindings.values()}
    for param in bindings:
        if not param.is_param or param.key in winning:
            continue
        uses = [param]
        if param.target.is_macro:
            uses = [other for other in bindings if f"%{param.scope}" in map(repr, other.references)]
        rivals = {
            rival.key: rival
            for use in uses
            for each in instances
            if use.applies(each.scope, each.target) and (rival := each.bindings[use.parameter])
        }
        if not all(rival.is_param for rival in rivals.values()):
            places = ", ".join(f"{key} ({rival.place})" for key, rival in rivals.items())
            verb, write = ("wins", "write that") if len(rivals) == 1 else ("win", "write those")
            raise BadInput(f"{param.place}: {param.key} sets nothing: {places} {verb}; {write}")


def check_required(instances: Sequence[Instance]) -> None:
    """Refuses a parameter without a default that nothing sets, and one left at `%gin.REQUIRED`."""
    for instance in instances:
        for binding in instance.bindings.values():
            if binding.is_required:
                owner = instance if instance.target.is_macro else f"{instance}.{binding.parameter}"
                raise BadInput(f"{binding.place}: {owner} is required and no gin file or --gin_param sets it")
        for name in instance.target.without_default if instance.called else ():
            if name not in instance.bindings:
                raise BadInput(f"{instance.place}: {instance}.{name} has no default and nothing sets it")


def check_types(instances: Sequence[Instance]) -> None:
    """Refuses a literal or a reference that does not suit the annotation of its parameter."""
    macros = {instance.scope: instance for instance in instances if instance.target.is_macro}
    for instance in instances:
        declared = hints(instance.target.call)
        for binding in instance.bindings.values():
            value, hint = without_macros(binding.value, macros), declared.get(binding.parameter)
            if binding.place is None or suits(hint, value):
                continue
            wanted = hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))
            fix = ""
            if isinstance(value, Reference) and suits(hint, value.called()):
                fix = f"; write {value.called()!r}"
            raise BadInput(f"{binding.place}: {binding.key} wants {wanted}, got {value!r}{fix}")
