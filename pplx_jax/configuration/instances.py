"""What a recipe builds: every instance reached from the verbs, and the binding that wins each parameter.

An instance is a name in a scope, `pair/Optimizer`. The walk repeats gin's own scoping rules on the
statements, so that a recipe can be judged, printed and hashed before anything is built.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.configuration.statements import MACRO, Binding, Macro, Place, Reference, leaves, replace_leaves
from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Instance:
    """One call that the recipe makes.

    Attributes:
        scope: the scope it is built in, "" for none.
        name: what is built, a name of the table or MACRO.
        place: where the reference to it stands; None for a verb.
        bindings: parameter -> the binding that wins it.
    """

    scope: str
    name: str
    place: Place | None
    bindings: Mapping[str, Binding]

    def __str__(self) -> str:
        if self.name == MACRO:
            return f"%{self.scope}"
        return f"{self.scope}/{self.name}" if self.scope else self.name


def winners(bindings: Sequence[Binding]) -> list[Binding]:
    """Drops every binding that a later one of the same key overrides."""
    return list({binding.key: binding for binding in bindings}.values())


def reach(bindings: Sequence[Binding], verbs: Sequence[str]) -> list[Instance]:
    """Every instance reached from `verbs`, in the order in which a reader meets them.

    Raises:
        BadInput: an instance holds itself.
    """
    return _Walk(winners(bindings), only_winners=True).run(verbs)


def reachable(bindings: Sequence[Binding], verbs: Sequence[str]) -> list[Instance]:
    """As `reach`, but following overridden bindings too.

    `--gin_param 'run.stages = [@diffusion/Training()]'` leaves out the pair stage; its bindings are then idle
    and no mistake, because the recipe itself still refers to them.
    """
    return _Walk(bindings, only_winners=False).run(verbs)


class _Walk:
    def __init__(self, bindings: Sequence[Binding], only_winners: bool):
        self.only_winners = only_winners
        self.by_name: dict[str, list[Binding]] = {}
        for binding in bindings:
            self.by_name.setdefault(binding.name, []).append(binding)
        self.met: dict[tuple[str, str], Instance] = {}
        self.open: list[tuple[str, str]] = []

    def run(self, verbs: Sequence[str]) -> list[Instance]:
        for verb in verbs:
            self.visit("", verb, None)
        return list(self.met.values())

    def visit(self, scope: str, name: str, place: Place | None) -> None:
        identity = (scope, name)
        if identity in self.open:
            if self.only_winners:
                raise BadInput(f"{place}: {self.met[identity]} holds itself")
            return
        if identity in self.met:
            return
        seen = self.seen_from(scope, name)
        won = {binding.parameter: binding for binding in seen}
        self.met[identity] = Instance(scope, name, place, won)
        self.open.append(identity)
        for binding in won.values() if self.only_winners else seen:
            for leaf in leaves(binding.value):
                match leaf:
                    case Reference():
                        self.visit(leaf.scope or scope, leaf.name, binding.place)
                    case Macro():
                        self.visit(leaf.name, MACRO, binding.place)
        self.open.pop()

    def seen_from(self, scope: str, name: str) -> list[Binding]:
        """The bindings that apply to `scope/name`, weakest first: outer scopes first, then file order."""
        parts = scope.split("/") if scope else []
        outward = {"/".join(parts[:depth]): depth for depth in range(len(parts) + 1)}
        applying = [binding for binding in self.by_name.get(name, ()) if binding.scope in outward]
        return sorted(applying, key=lambda binding: outward[binding.scope])


def without_macros(value: Any, instances: Mapping[str, Instance]) -> Any:
    """`value` with each macro replaced by what it stands for; `instances` is keyed by the macros' names."""

    def expand(leaf: Any) -> Any:
        if isinstance(leaf, Macro) and leaf.name in instances:
            return without_macros(instances[leaf.name].bindings["value"].value, instances)
        return leaf

    return replace_leaves(value, expand)
