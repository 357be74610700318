"""What a recipe builds: every instance reached from the verbs, and the binding that sets each of its parameters."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pplx_jax.configuration.names import Reference, Target
from pplx_jax.configuration.statements import Binding
from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Instance:
    """One call that the recipe makes.

    Attributes:
        scope: the scope it is built in, "" for none.
        target: what is built.
        place: where the reference to it is; None for a verb.
        bindings: parameter -> the binding that sets it, defaults last.
        called: whether gin calls it. `@Name` hands out the class or function, which may get more arguments later.
    """

    scope: str
    target: Target
    place: str | None
    bindings: Mapping[str, Binding]
    called: bool = True

    def __str__(self) -> str:
        if self.target.is_macro:
            return f"%{self.scope}"
        return f"{self.scope}/{self.target.name}" if self.scope else self.target.name


def winners(bindings: Iterable[Binding]) -> list[Binding]:
    """Drops every binding that a later one of the same key overrides."""
    return list({binding.key: binding for binding in bindings}.values())


def reach(bindings: Sequence[Binding], verbs: Sequence[Target], *, overridden: bool = False) -> list[Instance]:
    """Returns every instance that the recipe builds, in the order of a reader.

    It starts from the verbs, and from what Python code may call at any time: what a module registers itself, and what
    the recipe hands out uncalled.

    Args:
        bindings: those that win their key, or all of them with `overridden`.
        verbs: functions of the command line that the recipe binds.
        overridden: whether to follow bindings that others override, too. They count as mentioned:
            `--gin_param 'run.stages = [@diffusion/Training()]'` leaves out the pair stage, and its bindings are then
            unused but no mistake.

    Raises:
        BadInput: an instance contains itself.
    """
    met: dict[tuple[str, Target, bool], Instance] = {}
    being_visited: list[tuple[str, Target, bool]] = []

    def visit(scope: str, target: Target, place: str | None, called: bool) -> None:
        identity = scope, target, called
        if identity in being_visited and not overridden:
            raise BadInput(f"{place}: {met[identity]} contains itself")
        if identity in met:
            return
        # Outer scopes first, so that an inner one overrides them; within a scope, the order of the files.
        applying = [binding for binding in bindings if binding.applies(scope, target)]
        applying.sort(key=lambda binding: len(binding.scope))
        winning = {binding.parameter: binding for binding in applying}
        defaults = {
            name: Binding("", target, name, value) for name, value in target.defaults.items() if name not in winning
        }
        met[identity] = Instance(scope, target, place, {**winning, **defaults}, called)
        being_visited.append(identity)
        for binding in applying if overridden else winning.values():
            for each in binding.references:
                visit("/".join(each.scopes) or scope, each.target, binding.place, each.evaluate)
        being_visited.pop()

    for verb in verbs:
        visit("", verb, None, called=False)
    handed_out = {each.target for binding in bindings for each in binding.references if not each.evaluate}
    for binding in bindings:
        has_effect = any(binding in each.bindings.values() for each in met.values())
        if not has_effect and (binding.target.called_anywhere or binding.target in handed_out):
            visit(binding.scope, binding.target, None, called=False)
    return list(met.values())


def without_macros(value: Any, macros: Mapping[str, Instance]) -> Any:
    """Returns `value` with each macro replaced by its value; `macros` is keyed by name."""
    if isinstance(value, dict):
        return {without_macros(key, macros): without_macros(item, macros) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_macros(item, macros) for item in value)
    if isinstance(value, Reference) and value.target.is_macro:
        return without_macros(macros["/".join(value.scopes)].bindings["value"].value, macros)
    return value
