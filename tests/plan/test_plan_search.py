"""A plan of exact search agrees with what the search itself does, and with arithmetic by hand."""

import pytest

from pplx_jax.core.errors import BadInput, Unmet
from pplx_jax.plan import plan_search as module
from pplx_jax.plan.plan_search import plan_search
from pplx_jax.retrieval.local import device_search


def test_a_thousand_million_vectors_on_256_chips():
    plan = plan_search(topology="v5e:16x16", vectors=10**9, dims=1024, queries=256, k=100)
    assert (plan["chips"], plan["hosts"], plan["bytes"]) == (256, 64, 1_024_000_000_000)
    assert plan["bytes_per_chip"] == 3_906_250 * 1025 and plan["fits"]
    assert plan["seconds_at_least"] == {"products": 0.0104, "read_vectors": 0.00488, "scores": 0.00977}
    assert plan["rescored_bytes_per_host"] == 256 * 232 * 1024
    assert plan["exchanged_bytes"] == 12 * 256 * 100 * 64


def test_the_constants_are_those_of_the_search():
    assert module.RESIDENT_SHARE == device_search._RESIDENT_SHARE and module._SPARE == device_search._SPARE


def test_too_many_vectors_say_how_many_chips_they_need():
    with pytest.raises(Unmet) as error:
        plan_search(topology="v5e:4x4", vectors=10**9)
    advice = error.value.report["advice"][0]
    needed = int(advice.split("from ")[1].split(" chips")[0])
    assert needed == 122
    assert plan_search(topology="v5e:8x16", vectors=10**9)["fits"]
    with pytest.raises(Unmet):
        plan_search(topology="v5e:8x8", vectors=10**9)
    with pytest.raises(BadInput, match="--k=0"):
        plan_search(topology="v5e:4x4", vectors=9, k=0)
    with pytest.raises(BadInput, match="topology 'x' in 1 slices is none"):
        plan_search(topology="x", vectors=9)
