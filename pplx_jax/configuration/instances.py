"""What a recipe builds: every instance reached from the verbs, and the binding that sets each of its parameters."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pplx_jax.configuration.statements import MACRO, Binding, Place, Reference, leaves, replace_leaves
from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Instance:
    """One call that the recipe makes.

    Attributes:
        scope: the scope it is built in, "" for none.
        name: what is built, or MACRO.
        place: where the reference to it is; None for a verb.
        bindings: parameter -> the binding that sets it.
        called: whether gin calls it; `@Name` hands out the class or function, which may get more arguments later.
    """

    scope: str
    name: str
    place: Place | None
    bindings: Mapping[str, Binding]
    called: bool = True

    def __str__(self) -> str:
        if self.name == MACRO:
            return f"%{self.scope}"
        return f"{self.scope}/{self.name}" if self.scope else self.name

    def in_scope_of(self, binding: Binding) -> bool:
        """Whether `binding` applies here, unless another one overrides it."""
        outer = f"{binding.scope}/" if binding.scope else ""
        return binding.name == self.name and f"{self.scope}/".startswith(outer)


def winners(bindings: Iterable[Binding]) -> list[Binding]:
    """Drops every binding that a later one of the same key overrides."""
    return list({binding.key: binding for binding in bindings}.values())


def reach(
    bindings: Sequence[Binding], roots: Sequence[tuple[str, str]], *, overridden: bool = False
) -> list[Instance]:
    """Returns every instance reached from `roots`, in the order of a reader.

    Args:
        bindings: those that win their key, or all of them with `overridden`.
        roots: scopes and names.
        overridden: whether to follow bindings that others override, too. They count as mentioned:
            `--gin_param 'run.stages = [@diffusion/Training()]'` leaves out the pair stage, and its bindings are then
            unused but no mistake.

    Raises:
        BadInput: an instance contains itself.
    """
    met: dict[tuple[str, str, bool], Instance] = {}
    being_visited: list[tuple[str, str, bool]] = []

    def visit(scope: str, name: str, place: Place | None, called: bool) -> None:
        identity = scope, name, called
        if identity in being_visited and not overridden:
            raise BadInput(f"{place}: {met[identity]} contains itself")
        if identity in met:
            return
        here = Instance(scope, name, place, {}, called)
        # Outer scopes first, so that an inner one overrides them; within a scope, the order of the files.
        seen = sorted(filter(here.in_scope_of, bindings), key=lambda binding: len(binding.scope))
        here = dataclasses.replace(here, bindings={binding.parameter: binding for binding in seen})
        met[identity] = here
        being_visited.append(identity)
        for binding in seen if overridden else here.bindings.values():
            for leaf in leaves(binding.value):
                if isinstance(leaf, Reference):
                    visit(leaf.scope or scope, leaf.name, binding.place, leaf.called)
        being_visited.pop()

    for scope, name in roots:
        visit(scope, name, None, called=False)
    return list(met.values())


def without_macros(value: Any, macros: Mapping[str, Instance]) -> Any:
    """Returns `value` with each macro replaced by its value; `macros` is keyed by name."""

    def expand(leaf: Any) -> Any:
        if isinstance(leaf, Reference) and leaf.name == MACRO and leaf.scope in macros:
            bindings = macros[leaf.scope].bindings
            return without_macros(bindings["value"].value, macros) if bindings else leaf
        return leaf

    return replace_leaves(value, expand)
