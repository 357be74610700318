"""Installed packages: checks before they are needed, the extra that has a missing one, and versions."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable

from pplx_jax.core.errors import BadInput


def require_packages(purpose: str, *modules: str, extra: str, otherwise: str = "") -> None:
    """Checks that modules are installed; imports none.

    Args:
      purpose: what needs the modules, for the message.
      modules: their names.
      extra: the extra of this package that installs them.
      otherwise: an alternative for the end of the message.

    Raises:
      BadInput: a module is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"{purpose} needs the module {module}; pip install 'pplx-jax[{extra}]'{otherwise}")


def extra_with(module: str) -> str | None:
    """Returns the first extra of this package that installs a module, or None.

    Args:
      module: its name. A package has it if their names are equal, or the package's begins with it (faiss: faiss-cpu).
    """
    wanted = module.partition(".")[0].replace("_", "-").lower()
    try:
        requirements = importlib.metadata.requires("pplx-jax") or ()
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return None
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*extra == [\"']([\w-]+)", requirement)
        if found and re.fullmatch(rf"{re.escape(wanted)}(-.*)?", found[1].replace("_", "-").lower()):
            return found[2]
    return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the version of each package, without those that are not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
