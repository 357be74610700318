"""Checks for packages of an extra before they are needed."""

import importlib.util

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
