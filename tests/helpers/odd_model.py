"""A tiny model of unusual shape: its head_dim is not width / heads, and the scales of its norms are random."""

import jax
import numpy as np

from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config


def odd_config(vocab_size: int, **fields) -> Qwen3Config:
    sizes = {"width": 48, "mlp_width": 96, "layers": 3, "query_heads": 4, "kv_heads": 2, "head_dim": 16}
    return Qwen3Config(vocab_size, **sizes, rope_theta=10_000.0, max_length=1024, embedding_init_std=1.0, **fields)


def odd_params(config: Qwen3Config) -> dict:
    """Returns random parameters, scales and biases too: scales of 1 would hide a norm that is missing or doubled."""
    generator = np.random.default_rng(0)

    def scaled(path, leaf):
        leaf = np.asarray(leaf)
        if path[-1].key == "scale":
            leaf = generator.uniform(0.5, 2.0, leaf.shape)
        if path[-1].key == "bias":
            leaf = generator.normal(size=leaf.shape)
        return leaf.astype(np.float32)

    return jax.tree_util.tree_map_with_path(scaled, initial_params(config, 0))
