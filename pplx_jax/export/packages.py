"""The packages of the extra `convert`, which are looked for before the work that needs them."""

import importlib.util

from pplx_jax.core.errors import BadInput


def require_packages(purpose: str, *modules: str, otherwise: str = "") -> None:
    """Refuses what cannot be done here.

    Args:
      purpose: what needs the modules.
      modules: their names.
      otherwise: how to do without, as the end of the line.

    Raises:
      BadInput: one of them is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"{purpose} needs the module {module}; pip install 'pplx-jax[convert]'{otherwise}")
