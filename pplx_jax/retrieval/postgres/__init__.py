"""PostgreSQL with the extension pgvector as an engine: signs in an HNSW graph, INT8 values for the exact ranking.

`index --engine postgres` calls `build`; `open_index` opens what it wrote. docs/postgres.md describes the table.
"""

from pplx_jax.retrieval.postgres.index import PostgresIndex, build

__all__ = ["PostgresIndex", "build"]
