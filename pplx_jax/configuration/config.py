"""`load`: gin files to a Config, which is plain data."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gin

from pplx_jax.configuration import rules
from pplx_jax.configuration.changeable import is_changeable
from pplx_jax.configuration.instances import Instance, reach, winners, without_macros
from pplx_jax.configuration.names import Names, bind
from pplx_jax.configuration.statements import MACRO, REQUIRED, SEARCH_PATHS, Binding, leaves, parse_value, read
from pplx_jax.configuration.table import Table
from pplx_jax.core.errors import BadInput


class Setting(NamedTuple):
    """One effective value as gin text, and where it was set ("file:line" or "default")."""

    value: str
    place: str


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked recipe.

    Attributes:
        arguments: verb function -> the arguments that the recipe binds for it, built by gin.
        settings: "pair/Training.steps" -> Setting, for every parameter of every instance that the recipe builds,
            with defaults, macros expanded.
        text: see `resolved`.
    """

    arguments: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Setting]
    text: str

    def resolved(self) -> str:
        """Returns every effective binding, defaults included, each with a comment that names the line that set it.

        The text is a gin file, and loading it gives a Config of the same fingerprint.
        """
        return self.text

    @property
    def fingerprint(self) -> str:
        """A hash of the effective values. Two recipes have the same one if they compute the same.

        Where a recipe runs, and how often it logs and saves, is not part of it (`changeable`).
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
    """Reads and checks a recipe, and has gin build it.

    gin's bindings stay in place until the next call, so that what a recipe hands out uncalled (`@Name`), and what
    the user's own modules register, takes them when it is called.

    Args:
        gin_files: paths, looked up in `search_paths` in turn, like the paths of `include`.
        gin_params: bindings that are applied after the files, from `--gin_param`.
        search_paths: by default the current folder, then the folders that contain the project's `gin/`.
        table: the short names that a recipe may use.
        unset: if given, the value of required macros that nothing sets, to look at a recipe without running it.
        defaults: bindings that are applied before the files.

    Raises:
        BadInput: anything that `names` and `rules` refuse, a file that is missing or does not parse, or a value that
            a class refuses; one line, with file and line.
    """
    bindings, imports = read(gin_files, gin_params, search_paths, defaults)
    if unset is not None:
        bindings = [
            dataclasses.replace(each, value=unset) if each.name == MACRO and each.value == REQUIRED else each
            for each in bindings
        ]
    table = table or Table()
    gin.clear_config()
    names = Names(table, imports)
    bindings = names.resolve(bindings)
    verbs = [verb for verb in table.verbs if any(binding.name == verb for binding in bindings)]
    roots = [("", verb) for verb in verbs]

    rules.check_macros(bindings)
    rules.check_used(bindings, roots, names)
    winning = winners(bindings)
    instances = reach(winning, roots)
    if decorated := [
        (each.scope, each.name)
        for each in winning
        if each.name != MACRO
        and names[each.name].decorated
        and not any(instance.in_scope_of(each) for instance in instances)
    ]:  # its module may call it at any time
        instances = reach(winning, [*roots, *decorated])
    rules.check_params(winning, instances)
    rules.check_required(instances, names)
    rules.check_types(instances, names)

    header = list(dict.fromkeys(f"{statement.format()}  # {place}" for statement, place in imports))
    return Config(
        arguments=_build(winning, verbs, instances, names),
        settings=_settings(instances, names),
        text="\n".join([*header, *([""] if header else []), _render(instances, names)]),
    )


def _build(
    bindings: Sequence[Binding], verbs: Sequence[str], instances: Sequence[Instance], names: Names
) -> dict[str, dict[str, Any]]:
    """Has gin build the arguments of the verbs."""
    # A required value that is still unset is one of a stage that is left out; gin would refuse it.
    bind((each for each in bindings if REQUIRED not in leaves(each.value)), names)
    try:
        gin.finalize()
        return {verb: gin.get_bindings(names[verb].configurable.selector) for verb in verbs}
    except (BadInput, TypeError, ValueError) as error:
        raise BadInput(_told(str(error).splitlines(), instances, names)) from error


def _told(lines: Sequence[str], instances: Sequence[Instance], names: Names) -> str:
    """Returns the message of an exception with the place at fault.

    gin adds a line to an exception for every call that it passes through, the innermost first.
    """
    calls = {}
    for each in instances:
        if each.name != MACRO:
            configurable = names[each.name].configurable
            scope = f" in scope '{each.scope}'" if each.scope else ""
            calls[f"  In call to configurable '{configurable.name}' ({configurable.wrapped}){scope}"] = each
    message = lines[0] if lines else ""
    instance = next((calls[line] for line in lines if line in calls), None)
    if instance is None:
        return message
    words = set(re.findall(r"\w+", message))
    blamed = [binding.place for parameter, binding in instance.bindings.items() if parameter in words]
    return f"{blamed[0] if blamed else instance.place}: {instance}: {message}"


def _defaults(instance: Instance, names: Names) -> list[Binding]:
    """Returns the parameters that nothing sets, as unscoped bindings: a scoped one would still override them."""
    if instance.name == MACRO:
        return []
    return [
        Binding("", instance.name, name, parameter.default)
        for name, parameter in names[instance.name].parameters.items()
        if name not in instance.bindings and _is_literal(parameter.default)
    ]


def _is_literal(value: Any) -> bool:
    if not isinstance(value, bool | int | float | str | tuple | list | dict | None):
        return False
    try:
        return parse_value(repr(value)) == value
    except SyntaxError:  # an infinity, or something else inside a container
        return False


def _settings(instances: Sequence[Instance], names: Names) -> dict[str, Setting]:
    macros = {instance.scope: instance for instance in instances if instance.name == MACRO}
    return {
        f"{instance}.{binding.parameter}": Setting(
            repr(without_macros(binding.value, macros)), str(binding.place or "default")
        )
        for instance in instances
        if instance.name != MACRO
        for binding in [*instance.bindings.values(), *_defaults(instance, names)]
    }


def _render(instances: Sequence[Instance], names: Names) -> str:
    """Returns the bindings that have an effect as gin text: macros, then a block for each scope and name."""
    blocks: dict[tuple[str, str], dict[str, Binding]] = {("", MACRO): {}}
    for instance in instances:
        for binding in [*instance.bindings.values(), *_defaults(instance, names)]:
            owner = ("", MACRO) if binding.name == MACRO else (binding.scope, binding.name)
            blocks.setdefault(owner, {})[binding.key] = binding
    texts = []
    for (_, name), block in blocks.items():
        order = [] if name == MACRO else list(names[name].parameters)
        rank = {parameter: number for number, parameter in enumerate(order)}
        lines = [
            f"{each.key} = {each.value!r}  # {each.place or 'default'}\n"
            for each in sorted(block.values(), key=lambda each: (rank.get(each.parameter, 0), each.key))
        ]
        texts.append("".join(lines))
    return "\n".join(text for text in texts if text)
