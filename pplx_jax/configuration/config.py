"""`load`: gin files to a Config, which is plain data: no part of it needs gin again."""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gin

from pplx_jax.configuration import rules
from pplx_jax.configuration.instances import Instance, reach, without_macros
from pplx_jax.configuration.statements import MACRO, REQUIRED, SEARCH_PATHS, Binding, Import, parse_value, read
from pplx_jax.configuration.table import Table, is_changeable
from pplx_jax.core.errors import BadInput


class Setting(NamedTuple):
    """One effective value as gin text, and where it was set ("file:line" or "default")."""

    value: str
    place: str


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked recipe.

    Attributes:
        arguments: verb function -> the arguments that the recipe binds for it, built.
        settings: "pair/Training.steps" -> Setting, for every parameter of every instance the recipe builds,
            defaults included and macros expanded.
        text: see `resolved`.
    """

    arguments: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Setting]
    text: str

    def resolved(self) -> str:
        """Every effective binding, defaults included, each with a comment that names the line that set it.

        The text is itself a gin file, and loading it gives a Config of the same fingerprint.
        """
        return self.text

    @property
    def fingerprint(self) -> str:
        """A hash of the effective values: equal exactly where two recipes ask for the same thing.

        Where it runs, and how often it logs and saves, is no part of it (`table.CHANGEABLE`).
        """
        lines = sorted(f"{key} = {setting.value}\n" for key, setting in self.settings.items() if not is_changeable(key))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def load(
    gin_files: Sequence[str] = (),
    gin_params: Sequence[str] = (),
    *,
    search_paths: Sequence[pathlib.Path] = SEARCH_PATHS,
    table: Table | None = None,
    unset: str | None = None,
    defaults: Sequence[str] = (),
) -> Config:
    """Reads, checks and builds a recipe.

    Args:
        gin_files: paths, looked up in `search_paths` in turn, as are the paths of `include`.
        gin_params: bindings that are applied after the files, as `--gin_param` gives them.
        search_paths: by default the current folder, then the folders that hold the project's `gin/`.
        table: what a recipe may name.
        unset: where given, the value of macros that are required and that nobody sets, for a look at a recipe that
            nothing is run of.
        defaults: bindings that are applied before the files.

    Raises:
        BadInput: anything that `rules` refuses, a file that is missing or does not parse, or a value that the
            dataclass it is bound to refuses; one line, with the file and line at fault.
    """
    bindings, imports = read(gin_files, gin_params, search_paths, defaults)
    if unset is not None:
        bindings = [
            dataclasses.replace(each, value=unset) if each.name == MACRO and each.value == REQUIRED else each
            for each in bindings
        ]
    table = table or Table()
    for statement in imports:
        table = _with_import(table, statement)
    verbs = [verb for verb in table.verbs if any(binding.name == verb for binding in bindings)]

    rules.check_names(bindings, table)
    rules.check_macros(bindings)
    rules.check_reached(bindings, verbs)
    instances = reach(bindings, verbs)
    rules.check_params(bindings, instances)
    rules.check_required(instances, table)
    rules.check_types(instances, table)

    blocks = _effective_blocks(instances, table)
    header = [f"from {module} import {name}  # {place}" for module, name, place in imports]
    return Config(
        arguments=_build(_render(blocks), instances, verbs, table),
        settings=_settings(instances, table),
        text="\n".join([*header, *([""] if header else []), _render(blocks)]),
    )


def _with_import(table: Table, statement: Import) -> Table:
    table = table.with_part(f"{statement.module}:{statement.name}")
    try:
        table.target(statement.name)
    except BadInput as error:
        raise BadInput(f"{statement.place}: {error}") from error
    return table


def _defaults(instance: Instance, table: Table) -> list[Binding]:
    """The parameters that nobody bound, as unscoped bindings: a scoped one would still win over them."""
    if instance.name == MACRO:
        return []
    return [
        Binding("", instance.name, name, parameter.default)
        for name, parameter in table.parameters(instance.name).items()
        if name not in instance.bindings and _is_literal(parameter.default)
    ]


def _is_literal(value: Any) -> bool:
    if not isinstance(value, bool | int | float | str | tuple | list | dict | None):
        return False
    try:
        return parse_value(repr(value)) == value
    except SyntaxError:  # an infinity, or something else inside a container
        return False


def _effective_blocks(instances: Sequence[Instance], table: Table) -> list[list[Binding]]:
    """The bindings that have an effect: macros, then one block a (scope, name) in the order of the walk."""
    blocks: dict[tuple[str, str], dict[str, Binding]] = {("", MACRO): {}}
    for instance in instances:
        for binding in [*instance.bindings.values(), *_defaults(instance, table)]:
            owner = ("", MACRO) if binding.name == MACRO else (binding.scope, binding.name)
            blocks.setdefault(owner, {})[binding.key] = binding
    ordered = []
    for (_, name), block in blocks.items():
        rank = {} if name == MACRO else {key: place for place, key in enumerate(table.parameters(name))}
        keyed = {(rank.get(binding.parameter, 0), key): binding for key, binding in block.items()}
        ordered.append([keyed[position] for position in sorted(keyed)])
    return [block for block in ordered if block]


def _render(blocks: Sequence[Sequence[Binding]]) -> str:
    return "\n".join(
        "".join(f"{binding.key} = {binding.value!r}  # {binding.place or 'default'}\n" for binding in block)
        for block in blocks
    )


def _settings(instances: Sequence[Instance], table: Table) -> dict[str, Setting]:
    macros = {instance.scope: instance for instance in instances if instance.name == MACRO}
    return {
        f"{instance}.{binding.parameter}": Setting(
            repr(without_macros(binding.value, macros)), str(binding.place or "default")
        )
        for instance in instances
        if instance.name != MACRO
        for binding in [*instance.bindings.values(), *_defaults(instance, table)]
    }


def _build(text: str, instances: Sequence[Instance], verbs: Sequence[str], table: Table) -> dict[str, dict[str, Any]]:
    """Gives `text` to gin and builds what the verbs are bound to."""
    by_identity = {(instance.scope, instance.name): instance for instance in instances}
    gin.clear_config()
    gin.enter_interactive_mode()  # so that a second load may register the same names
    try:
        for name in sorted({instance.name for instance in instances} - {MACRO}):
            target = table.target(name)
            builder = target if name in verbs else _builder(name, target, by_identity)
            gin.external_configurable(builder, name=name, module="pplx_jax")
    finally:
        gin.exit_interactive_mode()
    gin.parse_config(text)
    gin.finalize()
    try:
        return {verb: gin.get_bindings(verb) for verb in verbs}
    except BadInput as error:
        # gin appends lines of its own to every exception that passes through it.
        raise BadInput(str(error).splitlines()[0]) from None


def _builder(
    name: str, target: Callable[..., Any], instances: Mapping[tuple[str, str], Instance]
) -> Callable[..., Any]:
    """`target`, with whatever it refuses told as BadInput at the line of the recipe that is at fault."""

    @functools.wraps(target, updated=())
    def build(*args: Any, **fields: Any) -> Any:
        try:
            return target(*args, **fields)
        except (BadInput, TypeError, ValueError) as error:
            message = str(error)
            instance = instances[gin.current_scope_str(), name]
            words = set(re.findall(r"\w+", message))
            blamed = [binding.place for key, binding in instance.bindings.items() if key in words]
            place = blamed[0] if blamed else instance.place
            raise BadInput(f"{place}: {instance}: {message.splitlines()[0]}") from error

    return build
