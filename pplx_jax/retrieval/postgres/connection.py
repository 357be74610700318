"""Connections to PostgreSQL: errors in one line, and addresses without passwords."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from pplx_jax.core.errors import BadInput

EXTRA = "pip install 'pplx-jax[postgres]'"


def import_psycopg() -> Any:
    """Imports psycopg. Raises BadInput if it is not installed."""
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError:
        raise BadInput(f"the engine postgres needs psycopg: {EXTRA}") from None
    return psycopg


def without_password(url: str) -> str:
    """Returns the address as it may be stored: the password comes from PGPASSWORD or ~/.pgpass instead.

    Raises:
        BadInput: psycopg is not installed, or it is not an address of PostgreSQL.
    """
    psycopg = import_psycopg()
    try:
        known = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise BadInput(
            f"{url!r} is no address of PostgreSQL ({_line(error)}); give postgresql://USER@HOST/DATABASE"
        ) from None
    if "password" not in known:
        return url
    return psycopg.conninfo.make_conninfo("", **{name: value for name, value in known.items() if name != "password"})


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """Yields a psycopg connection. The block is one transaction: it counts completely, or after an error not at all.

    Raises:
        BadInput: the server does not answer, or refuses what the block asks for.
    """
    psycopg = import_psycopg()
    shown = without_password(url)
    try:
        connection = psycopg.connect(url, connect_timeout=10)
    except psycopg.Error as error:
        raise BadInput(f"no answer from {shown} ({_line(error)}); start PostgreSQL or correct the URL") from None
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        raise BadInput(f"{shown}: {_line(error)}; check that pgvector is installed there and this index too") from None


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
