"""What a verb and a flag of the command line are, and the types of their values."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Container
from typing import Any

from pplx_jax.core.paths import as_path, path_or_url, require_local, scheme


class PathOrName(str):
    """A path, or a name that is not a file ("bm25")."""


class PathOrUrl(str):
    """A path, or the URL of a bucket ("gs://bucket/tokens")."""


def names(text: str) -> list[str]:
    """Parses several names separated by commas."""
    return [name for name in text.split(",") if name]


def whole_numbers(text: str) -> list[int]:
    """Parses several whole numbers separated by commas."""
    try:
        return [int(number) for number in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers separated by commas, such as 256,512") from None


# How help shows a value of each type.
METAVARS: dict[Any, str] = {
    int: "N",
    float: "X",
    pathlib.Path: "PATH",
    PathOrName: "NAME_OR_PATH",
    PathOrUrl: "PATH_OR_URL",
    names: "NAME,...",
    whole_numbers: "N,...",
}


# Types of flags that name files or folders.
PATHS = (pathlib.Path, PathOrName, PathOrUrl)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One argument of a verb. A flag that the user leaves out keeps the gin binding or the default of the function.

    Attributes:
        names: as argparse takes them; a name without hyphens is positional.
        options: further arguments of `add_argument`; no default, which `signature.defaults` finds.
        gin_file: the flag names a gin file that is read after the recipe; a bare name is put into this pattern.
        output: the flag names a file or folder that the verb writes.
        owner: "module:Class" if the flag sets a field of that dataclass instead of a parameter of the function.
        local: if the flag takes no bucket, what the user should do instead of naming one.
    """

    names: tuple[str, ...]
    options: dict[str, Any]
    gin_file: str | None = None
    output: bool = False
    owner: str | None = None
    local: str | None = None

    @property
    def parameter(self) -> str:
        """The parameter of the function that the flag sets."""
        return self.options.get("dest", self.names[0].lstrip("-"))

    def checked_path(self, value: Any) -> Any:
        """Returns the value of a flag that takes paths, in the type of the flag.

        Args:
            value: one path, or several.

        Raises:
            BadInput: a URL that the flag cannot take.
        """
        kind = self.options.get("type")
        if isinstance(value, list | tuple):
            return [self.checked_path(item) for item in value]
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            return value
        if kind in (pathlib.Path, PathOrName) and self.local is not None:
            local = require_local(value, self.local)
            return local if kind is pathlib.Path else PathOrName(local if scheme(value) else value)
        if kind is pathlib.Path:
            return as_path(value)
        if kind is PathOrName:
            return PathOrName(as_path(value) if scheme(value) else value)
        return PathOrUrl(path_or_url(os.fspath(value), self.output))


def flag(
    *names: str,
    gin_file: str | None = None,
    output: bool = False,
    owner: str | None = None,
    local: str | None = None,
    **options: Any,
) -> Flag:
    """Returns a Flag, written like a call of `add_argument`."""
    return Flag(names, options, gin_file, output, owner, local)


WORKDIR = flag("--workdir", type=pathlib.Path)  # of every verb


@dataclasses.dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        name: as typed; a verb of a group has two words, such as "data report".
        help: one line.
        target: "module:function" that does the work; flags are its parameters. It is imported when the verb runs.
        example: the words after the name in the example that `--help` shows.
        heading: where `pplx-jax --help` lists the verb.
        flags: in addition to the shared ones.
        recipe: the function whose bindings the verb takes, if it needs a recipe.
        recipe_unless: a parameter that makes the recipe unnecessary when its flag is given.
        inspects_only: the verb reads a recipe without running it; it needs no workdir, and values that the recipe
            requires of its user may be missing.
        resumes: the same command continues an interrupted one instead of starting over.
        bindings: gin statements that are applied before those of the user.
        loads_recipes: the function loads recipes itself: it gets the user's gin files and bindings, and `dry_run`.
    """

    name: str
    help: str
    target: str
    example: str = ""
    heading: str = ""
    flags: tuple[Flag, ...] = ()
    recipe: str | None = None
    recipe_unless: str | None = None
    inspects_only: bool = False
    resumes: bool = False
    bindings: tuple[str, ...] = ()
    loads_recipes: bool = False

    @property
    def function(self) -> str:
        """The name of the function, under which gin binds its parameters."""
        return self.target.partition(":")[2]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The parameters that name what the verb writes."""
        return tuple(flag.parameter for flag in self.flags if flag.output)

    def runs_recipe(self, given: Container[Any] = ()) -> bool:
        """Returns whether the verb runs a recipe, or a part of one, in a workdir.

        Args:
            given: the parameters whose flags are given.
        """
        if self.loads_recipes:
            return True
        return self.recipe is not None and not self.inspects_only and self.recipe_unless not in given
