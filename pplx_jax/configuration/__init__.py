"""The only package that knows gin. It reads recipes, checks them, and has gin build them; docs/configuration.md.

gin does the parsing, the scopes, the macros, the references and the building. This package adds what gin lacks:
one-line errors with file and line, checks of unused bindings, unset values and types, the place where each value was
set, and the resolved recipe as text.
"""

from pplx_jax.configuration.config import Config, load
from pplx_jax.configuration.table import Table

__all__ = ["Config", "Table", "load"]
