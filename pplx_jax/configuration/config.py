"""`load`: gin files to a Config, which is plain data."""

import contextlib
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin

from pplx_jax.configuration import rules
from pplx_jax.configuration.instances import Instance, reach, winners, without_macros
from pplx_jax.configuration.names import MACRO, Names, Target
from pplx_jax.configuration.statements import SEARCH_PATHS, Binding, read
from pplx_jax.configuration.table import Table
from pplx_jax.core.errors import BadInput
from pplx_jax.core.resume_check import may_differ


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

        Where a recipe runs, and how often it logs and saves, is not part of it (`core.resume_check`).
        """
        lines = sorted(f"{key} = {setting.value}\n" for key, setting in self.settings.items() if not may_differ(key))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Gives gin's bindings back as they were when the block ends, for a caller that configures other code with gin."""
    before, locked = gin.config_str(), gin.config_is_locked()
    try:
        yield
    finally:
        gin.clear_config()
        gin.parse_config(before)
        if locked:
            gin.finalize()


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
    gin.clear_config()
    names = Names(table or Table())
    bindings = read(gin_files, gin_params, search_paths, defaults, names)
    if unset is not None:
        bindings = [
            dataclasses.replace(each, value=unset) if each.target.is_macro and each.is_required else each
            for each in bindings
        ]
    verbs = names.verbs
    rules.check_macros(bindings)
    rules.check_used(bindings, verbs)
    winning = winners(bindings)
    instances = reach(winning, verbs)
    rules.check_params(winning, instances)
    rules.check_required(instances)
    rules.check_types(instances)
    _bind(instances)
    return Config(
        arguments=_build(instances, verbs),
        settings=_settings(instances),
        text=_render(names.imports, instances),
    )


def _bind(instances: Sequence[Instance]) -> None:
    """Gives gin the bindings that have an effect; of a stage that is left out it would refuse unset values."""
    for binding in {binding.key: binding for each in instances for binding in each.bindings.values()}.values():
        if binding.place is not None:
            gin.bind_parameter((binding.scope, binding.target.record.selector, binding.parameter), binding.value)


def _build(instances: Sequence[Instance], verbs: Sequence[Target]) -> dict[str, dict[str, Any]]:
    """Has gin build the arguments of the verbs."""
    try:
        gin.finalize()
        return {verb.name: {**verb.defaults, **gin.get_bindings(verb.record.selector)} for verb in verbs}
    except (BadInput, TypeError, ValueError) as error:
        raise BadInput(_with_place(str(error).splitlines() or [repr(error)], instances)) from error


def _with_place(lines: Sequence[str], instances: Sequence[Instance]) -> str:
    """Returns the message of an exception from a class that gin called, with the place at fault.

    gin adds a line to an exception for every call that it passes through, the innermost first.
    """
    for line in lines:
        for each in instances:
            scope = f" in scope '{each.scope}'" if each.scope else ""
            if line.startswith("  In call to configurable") and line.endswith(f" ({each.target.call}){scope}"):
                words = set(re.findall(r"\w+", lines[0]))
                blamed = [binding.place for parameter, binding in each.bindings.items() if parameter in words]
                return f"{next(filter(None, blamed), each.place)}: {each}: {lines[0]}"
    return lines[0]


def _settings(instances: Sequence[Instance]) -> dict[str, Setting]:
    macros = {instance.scope: instance for instance in instances if instance.target.is_macro}
    return {
        f"{instance}.{parameter}": Setting(repr(without_macros(binding.value, macros)), binding.place or "default")
        for instance in instances
        if not instance.target.is_macro
        for parameter, binding in instance.bindings.items()
    }


def _render(imports: Mapping[str, str], instances: Sequence[Instance]) -> str:
    """Returns what has an effect as gin text: imports, macros, then a block for each scope and name."""
    blocks: dict[str, dict[str, Binding]] = {MACRO.name: {}}
    for instance in instances:
        for binding in instance.bindings.values():
            owner = MACRO.name if binding.target.is_macro else binding.owner
            blocks.setdefault(owner, {})[binding.key] = binding
    texts = ["".join(f"{statement}  # {place}\n" for statement, place in imports.items())]
    for block in blocks.values():
        lines = sorted(block.values(), key=lambda each: (_rank(each), each.key))
        texts.append("".join(f"{each.key} = {each.value!r}  # {each.place or 'default'}\n" for each in lines))
    return "\n".join(text for text in texts if text)


def _rank(binding: Binding) -> int:
    """Returns the position of the parameter in the signature; at the end for one of `**kwargs`."""
    return [*binding.target.parameters, binding.parameter].index(binding.parameter)
