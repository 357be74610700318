"""The verb `index`: builds an index from the folder that `embed` wrote, with the engine that is asked for."""

import pathlib
from typing import Any, Literal

BuiltEngine = Literal["faiss", "numpy", "vespa", "postgres"]


def build_index(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    engine: BuiltEngine | None = None,
    lists: int | None = None,
    url: str | None = None,
    table: str | None = None,
    vespa_config_url: str | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Builds an index from a finished embedding folder.

    Args:
        embeddings: what `embed_file` wrote, see `open_embeddings`.
        output: the folder to write. The same index is built again, and takes its place when it is complete.
        engine: "faiss" stores the signs of int8 embeddings for a first search stage. "numpy" stores nothing more; each
            query is compared with every vector. "vespa" feeds a Vespa instance instead, "postgres" fills a table of
            PostgreSQL. None for faiss if the embeddings are int8 and their number of dimensions is a multiple of 8,
            else numpy.
        lists: number of inverted lists of faiss, 0 for none. None for none below `sign_search.LISTS_FROM` vectors, and
            the square root of their number above.
        url: of the server: Vespa's container, or the database, such as postgresql://USER@HOST/DATABASE.
        table: of PostgreSQL; None for "pplx_" and the name of `output`.
        vespa_config_url: `config_url` of `pplx_jax.retrieval.vespa.build`.
        replace: whether to replace an index of another model, other texts or other settings, or one that was updated.

    Returns:
        {"count", "dims", "quantization", "engine", "lists"}; of a server see `vespa.build` and `postgres.build`.

    Raises:
        BadInput: the embeddings are missing, damaged, unfinished, empty or unsuitable for the engine, or `output`
            contains something else, or another index and `replace` is false.
    """
    if engine == "vespa":
        from pplx_jax.retrieval import vespa  # needs an HTTP client

        return vespa.build(embeddings, output, url=url, config_url=vespa_config_url, replace=replace)
    if engine == "postgres":
        from pplx_jax.retrieval import postgres  # needs psycopg

        return postgres.build(embeddings, output, url=url, table=table, replace=replace)
    from pplx_jax.retrieval.local.build import build

    return build(embeddings, output, engine=engine, lists=lists, replace=replace)
