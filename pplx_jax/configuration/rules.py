"""What is refused in a recipe, beside unknown names (`names`). Every message is one line with file and line.

- a macro that is not defined or not used, and a binding for something that the recipe never refers to;
- a binding of the command line that a scoped one of a file overrides everywhere;
- a required value that nothing sets;
- a literal of another type than its parameter declares, and a reference to another class.
"""

import inspect
import re
from collections.abc import Sequence

import gin

from pplx_jax.configuration.instances import Instance, reach, without_macros
from pplx_jax.configuration.names import Names, is_constant, references
from pplx_jax.configuration.statements import MACRO, REQUIRED, Binding, Reference, leaves
from pplx_jax.configuration.types import hints, suits
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest


def check_macros(bindings: Sequence[Binding]) -> None:
    """Refuses a macro that is used and not defined, and one that is defined and not used."""
    defined = {binding.scope: binding for binding in bindings if binding.name == MACRO}
    used = {leaf.scope: binding for leaf, binding in references(bindings) if leaf.name == MACRO}
    for name, binding in used.items():
        if name not in defined and not is_constant(name):
            hint = nearest(name, defined)
            raise BadInput(f"{binding.place}: {binding.key} uses %{name}, a macro that nothing defines{hint}")
    for name, binding in defined.items():
        if name not in used:
            raise BadInput(f"{binding.place}: the macro {name} is never used{nearest(name, used)}")


def check_used(bindings: Sequence[Binding], verbs: Sequence[tuple[str, str]], names: Names) -> None:
    """Refuses a binding for something that the recipe never refers to."""
    instances = reach(bindings, verbs, overridden=True)
    handed_out = {leaf.name for leaf, _ in references(bindings) if not leaf.called}  # called later, in any scope
    for binding in bindings:
        if binding.name == MACRO or binding.name in handed_out or names[binding.name].decorated:
            continue
        if not any(instance.in_scope_of(binding) for instance in instances):
            owner = f"{binding.scope}/{binding.name}" if binding.scope else binding.name
            hint = nearest(owner, [str(instance) for instance in instances if instance.name != MACRO])
            raise BadInput(f"{binding.place}: {binding.key} sets nothing: nothing refers to {owner}{hint}")


def check_params(bindings: Sequence[Binding], instances: Sequence[Instance]) -> None:
    """Refuses a binding of the command line that has no effect, unless another one there overrides it.

    A binding of a file may be a general default that every scope overrides, and a stage may be left out.
    """
    winning = {binding.key for instance in instances for binding in instance.bindings.values()}
    for param in bindings:
        if not param.is_param or param.key in winning:
            continue
        macro = Reference(param.scope, MACRO)
        uses = [param] if param.name != MACRO else [each for each in bindings if macro in leaves(each.value)]
        rivals = {
            rival.key: rival
            for use in uses
            for instance in instances
            if instance.in_scope_of(use) and (rival := instance.bindings[use.parameter])
        }
        if not all(rival.is_param for rival in rivals.values()):
            places = ", ".join(f"{key} ({rival.place})" for key, rival in rivals.items())
            verb, write = ("wins", "write that") if len(rivals) == 1 else ("win", "write those")
            raise BadInput(f"{param.place}: {param.key} sets nothing: {places} {verb}; {write}")


def check_required(instances: Sequence[Instance], names: Names) -> None:
    """Refuses a parameter without a default that nothing sets, and one left at `%gin.REQUIRED`."""
    for instance in instances:
        for binding in instance.bindings.values():
            if REQUIRED in leaves(binding.value):
                owner = instance if instance.name == MACRO else f"{instance}.{binding.parameter}"
                raise BadInput(f"{binding.place}: {owner} is required and no gin file or --gin_param sets it")
        if instance.name == MACRO or not instance.called:
            continue  # the caller may give the rest
        for name, parameter in names[instance.name].parameters.items():
            has_default = parameter.default is not inspect.Parameter.empty and parameter.default is not gin.REQUIRED
            if not has_default and name not in instance.bindings:
                raise BadInput(f"{instance.place}: {instance}.{name} has no default and nothing sets it")


def check_types(instances: Sequence[Instance], names: Names) -> None:
    """Refuses a literal or a reference that does not suit the annotation of its parameter."""
    macros = {instance.scope: instance for instance in instances if instance.name == MACRO}
    for instance in instances:
        declared = {} if instance.name == MACRO else hints(names[instance.name].configurable.wrapped)
        for binding in instance.bindings.values():
            value, hint = without_macros(binding.value, macros), declared.get(binding.parameter)
            if not suits(hint, value, names):
                wanted = hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))
                fix = ""
                if isinstance(value, Reference) and not value.called and suits(hint, call := value._replace(called=True), names):
                    fix = f"; write {call!r}"
                raise BadInput(f"{binding.place}: {binding.key} wants {wanted}, got {value!r}{fix}")
