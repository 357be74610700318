"""Meshes and where parameters lie on them: by rule, on eight simulated devices, and where sizes do not divide."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import AbstractMesh, PartitionSpec

from pplx_jax.errors import BadInput
from pplx_jax.models.qwen3 import Qwen3Config
from pplx_jax.optimizers import Optimizer
from pplx_jax.parallel.mesh import BATCH_AXES, LOGICAL_AXES, Mesh, batch_sharding, replicated, shardings
from pplx_jax.train_state import initial_params, state_layout

SIZES = {"vocab_size": 11, "mlp_width": 24, "layers": 3, "query_heads": 2, "kv_heads": 1, "head_dim": 6}
# Where the width lies, by path: [V, D], [n, in, out] and its transposes; norms are everywhere.
BY_RULE = {
    "embed.embedding": (None, "fsdp"),
    "layers.attention.q.kernel": (None, "fsdp", None),
    "layers.attention.k.kernel": (None, "fsdp", None),
    "layers.attention.v.kernel": (None, "fsdp", None),
    "layers.attention.o.kernel": (None, None, "fsdp"),
    "layers.mlp.gate.kernel": (None, "fsdp", None),
    "layers.mlp.up.kernel": (None, "fsdp", None),
    "layers.mlp.down.kernel": (None, None, "fsdp"),
    "layers.input_norm.scale": (),
    "layers.post_attention_norm.scale": (),
    "layers.attention.q_norm.scale": (),
    "layers.attention.k_norm.scale": (),
    "final_norm.scale": (),
}


def abstract(data: int, fsdp: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp), BATCH_AXES)


def params(width: int):
    return jax.eval_shape(lambda: initial_params(Qwen3Config(width=width, **SIZES), 0))


def by_path(tree) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def specs(tree, mesh) -> dict[str, PartitionSpec]:
    return {name: sharding.spec for name, sharding in by_path(shardings(tree, mesh)).items()}


def test_every_parameter_lies_by_rule():
    found = specs(params(width=8), abstract(2, 4))
    assert found == {name: PartitionSpec(*axes) for name, axes in BY_RULE.items()}
    # A matrix that no rule names would be copied to every device without a word.
    matrices = {name for name in found if "kernel" in name or "embedding" in name}
    assert all(any(name.endswith(suffix) for suffix in LOGICAL_AXES) for name in matrices)


@pytest.mark.parametrize("width, fsdp", [(8, 3), (6, 4), (7, 2)])
def test_a_width_that_does_not_divide_is_on_every_device(width, fsdp):
    for name, spec in specs(params(width), abstract(1, fsdp)).items():
        assert all(axis is None for axis in spec), name


def test_a_width_that_divides_only_the_smaller_mesh_is_spread_there():
    assert specs(params(6), abstract(4, 2))["embed.embedding"] == PartitionSpec(None, "fsdp")  # 6 / 2; V = 11 is odd
    assert specs(params(6), abstract(2, 4))["embed.embedding"] == PartitionSpec(None, None)


def test_moments_lie_where_their_parameters_do():
    config = Qwen3Config(width=8, **SIZES)
    optimizer = Optimizer(peak_learning_rate=0.1, warmup_steps=0, embedding_multiplier=2.0).build(4)
    mesh = Mesh().build()
    layout = by_path(state_layout(config, tiny.STAGES["pair"], optimizer, mesh))
    tree = jax.eval_shape(lambda: {"params": initial_params(config, 0)})
    tree["optimizer"] = jax.eval_shape(optimizer.init, tree["params"])
    found = specs(tree, abstract(2, 4))
    moments = [name for name in found if ".mu." in name or ".nu." in name]
    assert len(moments) == 2 * len(BY_RULE)
    for name in moments:
        parameter = name.partition("u.")[2]
        assert found[name] == PartitionSpec(*BY_RULE[parameter]), name
    assert {f"params.{name}" for name in BY_RULE} <= layout.keys()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.mesh == mesh for leaf in layout.values())


def test_scalars_and_leaves_of_another_rank_are_on_every_device():
    tree = {"step": jnp.int32(0), "embed": {"embedding": jnp.zeros(8)}, "other": jnp.zeros((8, 8))}
    assert set(specs(tree, abstract(1, 4)).values()) == {PartitionSpec()}


def test_rows_are_spread_over_every_device():
    assert batch_sharding(abstract(2, 4)).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(abstract(2, 4)).spec == PartitionSpec()


@pytest.mark.parametrize("data, fsdp", [(1, 2), (2, 1), (64, 64)])
def test_a_mesh_larger_than_the_devices_is_bad_input(data, fsdp):
    with pytest.raises(BadInput) as caught:
        Mesh(data=data, fsdp=fsdp).build(jax.devices()[:1])
    message = str(caught.value)
    for part in (f"data={data}", f"fsdp={fsdp}", f"wants {data * fsdp} devices", "has 1 (cpu)"):
        assert part in message


@pytest.mark.parametrize("data, fsdp", [(0, 1), (1, 0), (-1, 2), (-2, -2)])
def test_a_mesh_of_no_device_is_bad_input(data, fsdp):
    with pytest.raises(BadInput, match="set both to 1 or more"):
        Mesh(data=data, fsdp=fsdp)


EIGHT = """
import json, jax, numpy as np
from pplx_jax.parallel.mesh import Mesh, batch_sharding, shardings

whole, part = Mesh(data=2, fsdp=4).build(), Mesh(data=3, fsdp=1).build()
table = np.arange(88.0, dtype=np.float32).reshape(11, 8)
placed = jax.device_put({"embed": {"embedding": table}}, shardings({"embed": {"embedding": table}}, whole))
shards = placed["embed"]["embedding"].addressable_shards
rows = jax.device_put(np.arange(16).reshape(16, 1), batch_sharding(whole))
try:
    Mesh(data=3, fsdp=3).build()
    refused = ""
except Exception as error:
    refused = str(error)
print(json.dumps({
    "shape": dict(whole.shape),
    "devices": [device.id for device in whole.devices.flat],
    "part": [device.id for device in part.devices.flat],
    "shards": [list(shard.data.shape) for shard in shards],
    "columns": [shard.data[0].tolist() for shard in shards],
    "rows": [shard.data[:, 0].tolist() for shard in rows.addressable_shards],
    "refused": refused,
}))
"""


def test_eight_devices_share_a_table_and_a_batch():
    root = pathlib.Path(__file__).parents[2]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shape"] == {"data": 2, "fsdp": 4} and found["devices"] == list(range(8))
    assert found["part"] == [0, 1, 2]  # the first ones; the rest idle
    # Each copy of the table is four strips of two columns; there are two copies.
    assert found["shards"] == [[11, 2]] * 8
    strips = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    assert found["columns"] == strips * 2
    assert found["rows"] == [[2 * device, 2 * device + 1] for device in range(8)]
    assert "wants 9 devices, this machine has 8" in found["refused"]
