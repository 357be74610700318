"""Runs `pplx-jax` with only those packages importable that the image of `launch/Dockerfile` has."""

import contextlib
import importlib.metadata
import os
import pathlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from unittest import mock

import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[2]
OF_PYTHON = {"pip", "setuptools", "wheel"}  # in the image that ours builds on


def extras_of_the_image() -> list[str]:
    """Returns the extras that the Dockerfile installs."""
    text = (ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8")
    [names] = re.findall(r"-e '\.\[([\w,]+)\]'", text)
    return names.split(",")


def packages_with(extras: Iterable[str]) -> set[str]:
    """Returns the distributions that `pip install '.[extras]'` puts into an empty environment."""
    with contextlib.chdir(ROOT), mock.patch.object(setuptools, "setup") as setup:
        runpy.run_path("setup.py")
    declared = setup.call_args.kwargs
    waiting = [(Requirement(line), "") for line in declared["install_requires"]]
    waiting += [(Requirement(line), "") for extra in extras for line in declared["extras_require"][extra]]
    found: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for chosen in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), chosen)
            if key not in found:
                found.add(key)
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # for another platform
                    lines = importlib.metadata.requires(requirement.name) or []
                    waiting += [(Requirement(line), chosen) for line in lines]
    return {name for name, _ in found} | OF_PYTHON


def hidden_modules(extras: Iterable[str]) -> set[str]:
    """Returns the top-level modules that are installed here and would not be with these extras alone."""
    kept = packages_with(extras) | {"pplx-jax"}
    modules = importlib.metadata.packages_distributions().items()
    return {module for module, owners in modules if kept.isdisjoint(map(canonicalize_name, owners))}


class _Without:
    """A finder that does not find the hidden modules."""

    def __init__(self, finder, hidden: set[str]):
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def run_in_the_image(words: list[str], extras: Iterable[str] | None = None) -> subprocess.CompletedProcess:
    """Runs `pplx-jax` with these words in a separate process; a control gives other `extras` than the image has."""
    extras = extras_of_the_image() if extras is None else list(extras)
    installed = {canonicalize_name(each.name) for each in importlib.metadata.distributions()}
    hidden = {
        "HIDDEN_MODULES": hidden_modules(extras),
        "HIDDEN_PACKAGES": installed - packages_with(extras) - {"pplx-jax"},
    }
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {name: ",".join(sorted(names)) for name, names in hidden.items()}
    command = [sys.executable, "-c", _PROGRAM, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


_PROGRAM = """
import os, re, sys

modules, packages = (set(os.environ[f"HIDDEN_{kind}"].split(",")) for kind in ("MODULES", "PACKAGES"))
assert not modules & sys.modules.keys()

class Without:
    # A finder that finds none of the hidden modules, and no metadata of their packages.
    def __init__(self, finder):
        self.finder = finder
        if hasattr(finder, "find_distributions"):
            self.find_distributions = self.visible

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else self.finder.find_spec(name, path, target)

    def visible(self, *context):
        found = self.finder.find_distributions(*context)
        return (each for each in found if re.sub("[-_.]+", "-", each.name).lower() not in packages)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
from pplx_jax.cli.main import main

sys.exit(main(sys.argv[1:]))
"""
