"""Opens an index of any engine by what its folder describes."""

import pathlib

from pplx_jax.core.paths import as_path
from pplx_jax.retrieval.searchable_index import SearchableIndex

VESPA, POSTGRES = "vespa.json", "postgres.json"


def open_index(path: str | pathlib.Path, url: str | None = None) -> SearchableIndex:
    """Opens the index that `index` wrote.

    Args:
        path: its folder.
        url: of the server, if it is another than when the index was built.

    Raises:
        BadInput: there is no index, it is damaged or of another version, or its server does not answer.
    """
    path = as_path(path)
    if (path / VESPA).exists():
        from pplx_jax.retrieval.vespa import VespaIndex  # needs an HTTP client

        return VespaIndex.load(path, url)
    if (path / POSTGRES).exists():
        from pplx_jax.retrieval.postgres import PostgresIndex  # needs psycopg

        return PostgresIndex.load(path, url)
    from pplx_jax.retrieval.local.index import LocalIndex

    return LocalIndex(path)
