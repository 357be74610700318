"""Model FLOPs against figures worked out by hand, and which devices' peaks are known."""

import dataclasses
import types

import pytest

from pplx_jax.models.model_flops import peak_flops, training_flops
from pplx_jax.models.transformer import Qwen3Config

SMALL = Qwen3Config(vocab_size=11, width=4, mlp_width=6, layers=3, query_heads=2, kv_heads=1, head_dim=8)
QWEN3_0P6B = Qwen3Config(
    vocab_size=151_936, width=1024, mlp_width=3072, layers=28, query_heads=16, kv_heads=8, head_dim=128
)
QWEN3_4B = dataclasses.replace(QWEN3_0P6B, width=2560, mlp_width=9728, layers=36, query_heads=32)


def test_a_small_model_by_hand():
    # A layer: q 4x16, k and v 4x8 each, o 16x4, three 4x6 products, norms 4 + 4 + 8 + 8.
    layer = 64 + 32 + 32 + 64 + 72 + 24
    # Two texts of 5 and 3 tokens; scores and mixing are 2 x 2 FLOPs a pair of tokens, head and dimension, three times.
    pairs = 25 + 9
    expected = 6 * (3 * layer + 4) * 8 + 6 * 11 * 4 * 2 + 3 * 2 * 2 * 3 * (2 * 8) * pairs
    assert training_flops(SMALL, tokens=8, token_pairs=pairs, predicted=2) == expected


@pytest.mark.parametrize("config, gigaflops", [(QWEN3_0P6B, 6.39), (QWEN3_4B, 31.4)])
def test_published_sizes_cost_what_is_known_of_them(config, gigaflops):
    """A token in rows of 4,096, each with a loss."""
    found = training_flops(config, tokens=1, token_pairs=4096, predicted=1)
    assert found / 1e9 == pytest.approx(gigaflops, rel=2e-3)


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("cpu", None),
        ("TPU7x", 1153.5),
        ("TPU v9", None),
    ],
)
def test_a_peak_is_known_or_absent(kind, teraflops):
    found = peak_flops(types.SimpleNamespace(device_kind=kind))
    assert found == (None if teraflops is None else teraflops * 1e12)
