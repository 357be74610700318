"""The verb `plan-search`: what exact search of many vectors needs on a TPU slice, by arithmetic.

It follows `pod_search` and `device_search` in `retrieval/local/`: each chip holds an equal share of the vectors,
compares it with all queries of a batch, and keeps the best; the hosts rank these again by exact integers and exchange
their k best. No program is compiled.
"""

import math
from typing import Any

from pplx_jax.core.errors import BadInput, Unmet
from pplx_jax.plan.chips import Topology

RESIDENT_SHARE = 0.5  # of the memory of a chip, as in `device_search`
_SPARE = 32  # more than 2 k that a chip returns, as in `device_search`
_BYTES_OF_PLACE, _BYTES_OF_MARK = 8, 1  # of a vector, on every host
_BYTES_OF_HIT = 12  # a document and a score


def plan_search(
    *, topology: str, vectors: int, dims: int = 1024, queries: int = 256, k: int = 100, num_slices: int = 1
) -> dict[str, Any]:
    """Returns what exact search of INT8 vectors by the engine jax needs on a slice.

    Args:
        topology: a slice, such as "v5e:16x16".
        vectors: their number.
        dims: dimensions of a vector.
        queries: number of queries of a batch.
        k: hits per query.
        num_slices: number of slices.

    Returns:
        `fits`: whether all vectors stay in the chips' memory; `chips`, `hosts`, `bytes`, `bytes_per_chip`,
        `hbm_limit_bytes`, `host_bytes`: of the order of ties and the marks of deleted vectors, on every host;
        `seconds_at_least` per batch, by kind: products (at the rate of bfloat16), reading the vectors, writing and
        reading the scores once, which the top k does more than once; `rescored_bytes_per_host`: of candidates, read
        from files; `exchanged_bytes`: received by a host.

    Raises:
        BadInput: there is no such topology, or a number is less than 1.
        Unmet: the vectors do not fit; the error contains the same report.
    """
    for name, value in {"vectors": vectors, "dims": dims, "queries": queries, "k": k}.items():
        if value < 1:
            raise BadInput(f"--{name}={value}: give at least 1")
    where = Topology(topology, num_slices)
    chip, chips = where.chip, math.prod(where.shape) * num_slices
    hosts = max(chips // (8 if where.is_one_host else 4), 1)
    rows = math.ceil(vectors / chips)
    per_chip = rows * (dims + _BYTES_OF_MARK)
    seconds = {
        "products": 2 * queries * rows * dims / chip.peak_flops,
        "read_vectors": rows * dims / chip.hbm_bytes_per_second,
        "scores": 2 * 4 * queries * rows / chip.hbm_bytes_per_second,
    }
    report: dict[str, Any] = {
        "fits": per_chip <= RESIDENT_SHARE * chip.hbm_limit_bytes,
        "topology": str(where),
        "chips": chips,
        "hosts": hosts,
        "bytes": vectors * dims,
        "bytes_per_chip": per_chip,
        "hbm_limit_bytes": chip.hbm_limit_bytes,
        "host_bytes": vectors * (_BYTES_OF_PLACE + _BYTES_OF_MARK),
        "seconds_at_least": {name: round(value, 5) for name, value in seconds.items()},
        "queries_per_second_at_most": round(queries / sum(seconds.values())),
        "rescored_bytes_per_host": queries * min(2 * k + _SPARE, vectors) * dims,
        "exchanged_bytes": _BYTES_OF_HIT * queries * k * hosts,
    }
    report["advice"] = _advice(report, where)
    if not report["fits"]:
        raise Unmet(report)
    return report


def _advice(report: dict[str, Any], where: Topology) -> list[str]:
    lines = []
    if not report["fits"]:
        chips = math.ceil(report["bytes_per_chip"] * report["chips"] / (RESIDENT_SHARE * where.chip.hbm_limit_bytes))
        lines.append(f"the vectors stay in memory from {chips} chips on; on fewer, every batch reads them from disk")
    if report["host_bytes"] > where.host_bytes / 2:
        lines.append(f"{report['host_bytes'] / 2**30:.0f} GiB on every host: use larger hosts")
    lines.append("put the index on a disk that all hosts share: a host copies an index in a bucket completely")
    return lines
