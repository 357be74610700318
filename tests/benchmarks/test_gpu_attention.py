"""The benchmark of attention on GPUs, as far as a machine without one can tell, and what attention lowers to there."""

import functools
import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.kernels.attention import attention

pytestmark = pytest.mark.long

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_attention.py"
spec = importlib.util.spec_from_file_location("gpu_attention", PATH)
gpu_attention = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = gpu_attention
sys.path.insert(0, str(PATH.parent))
spec.loader.exec_module(gpu_attention)


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_ends():
    done = subprocess.run([sys.executable, PATH, "--json"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("gpu_attention: this is cpu, it needs a CUDA device")


def test_arguments():
    arguments = gpu_attention.parse(["--lengths", "512", "1024", "--heads", "32", "--json"])
    assert (arguments.lengths, arguments.heads, arguments.json) == ([512, 1024], [32], True)
    with pytest.raises(SystemExit):
        gpu_attention.parse(["--heads", "7"])


def test_a_packed_case_ends_in_padding_and_a_dense_one_does_not():
    packed = gpu_attention.make_case(2, 512, 16, packed=True)
    assert len(set(packed.lengths)) > 3 and sum(packed.lengths) < 512
    np.testing.assert_array_equal(np.bincount(packed.segment_ids[0])[1:], packed.lengths)
    assert int(gpu_attention.make_case(2, 512, 16, packed=False).segment_ids.min()) == 1


def candidates(case):
    """What of them runs here, one in the place of cuDNN, and one that is wrong."""
    found = gpu_attention.jax_candidates(case)
    dense = len(case.lengths) == 1

    def rows_of_one_text(query, key, value, lengths=None):
        return jax.nn.dot_product_attention(
            query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="xla"
        )

    return {
        "ours": found["ours"],
        "blockwise": found["blockwise"],
        "unpacked": rows_of_one_text if dense else gpu_attention.unpacked(rows_of_one_text, case),
        "one_text": lambda *arrays: attention(*arrays, jnp.minimum(case.segment_ids, 1)),
    }


@pytest.mark.parametrize("backward", [False, True])
def test_candidates_are_compared_with_the_reference(backward):
    for name in ("ours", "blockwise", "unpacked"):
        gpu_attention.check(candidates, name, 16, packed=True, backward=backward)
    # Control: texts that see each other are found out.
    with pytest.raises(ValueError, match="one_text differs from the reference by"):
        gpu_attention.check(candidates, "one_text", 16, packed=True, backward=backward)


def test_on_cuda_attention_runs_kernels_and_keeps_no_scores_of_a_long_sequence():
    length = 32768

    def lowered(function, heads=16):
        shapes = [jax.ShapeDtypeStruct((1, length, count, 128), jnp.bfloat16) for count in (heads, 8, 8)]
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(query, key, value, ids):
            return function(query, key, value, ids).astype(jnp.float32).sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes, ids)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    def largest(text):
        shapes = [
            [int(size) for size in found.split("x")] for found in re.findall(r"tensor<((?:\d+x)*\d+)x[a-z]", text)
        ]
        return max(sum(size == length for size in shape) for shape in shapes), max(map(np.prod, shapes))

    text = lowered(attention)
    names = ("attention_forward", "attention_backward_queries", "attention_backward_keys")
    assert [text.count(f'name = "{name}"') for name in names] == [1, 1, 1]
    assert largest(text) == (1, 16 * 128 * length)  # the queries
    # XLA's way holds a block's scores [8, 2, 256, L].
    text = lowered(functools.partial(attention, implementation="blockwise"))
    assert "attention_forward" not in text and largest(text) == (1, 16 * 256 * length)
    # Control: whole scores are seen.
    axes, size = largest(lowered(functools.partial(attention, implementation="reference")))
    assert axes == 2 and size >= 16 * length * length
