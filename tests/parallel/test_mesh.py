"""Meshes and where parameters lie on them: by rule, on eight simulated devices, and where sizes do not divide."""

import json

import jax
import jax.numpy as jnp
import pytest
from helpers import simulated, tiny
from jax.sharding import AbstractMesh, PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh, batch_sharding, replicated, shardings
from pplx_jax.parallel.model_info import model_info
from pplx_jax.parallel.rules import MESH_AXES, PARAMETER_AXES, constrain, spec, using
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.train_state import state_layout

SIZES = {"vocab_size": 11, "mlp_width": 24, "layers": 3, "query_heads": 2, "kv_heads": 1, "head_dim": 6}
# Where axes lie, by path: [V, D], [n, in, out] and its transposes; norms are everywhere.
BY_RULE = {
    "embed.embedding": ("vocab", "embed"),
    "layers.attention.q.kernel": (None, "embed", "heads"),
    "layers.attention.k.kernel": (None, "embed", "heads"),
    "layers.attention.v.kernel": (None, "embed", "heads"),
    "layers.attention.o.kernel": (None, "heads", "embed"),
    "layers.mlp.gate.kernel": (None, "embed", "heads"),
    "layers.mlp.up.kernel": (None, "embed", "heads"),
    "layers.mlp.down.kernel": (None, "heads", "embed"),
    "layers.input_norm.scale": (None, None),
    "layers.post_attention_norm.scale": (None, None),
    "layers.attention.q_norm.scale": (None, None),
    "layers.attention.k_norm.scale": (None, None),
    "final_norm.scale": (None,),
}


def by_rule(**where) -> dict[str, PartitionSpec]:
    return {name: PartitionSpec(*(where.get(axis) for axis in axes)) for name, axes in BY_RULE.items()}


def abstract(data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, slices: int = 1) -> AbstractMesh:
    return AbstractMesh((slices, data, fsdp, tensor, sequence), MESH_AXES)


def params(width: int):
    return jax.eval_shape(lambda: initial_params(Qwen3Config(width=width, **SIZES), 0))


def by_path(tree) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def specs(tree, mesh) -> dict[str, PartitionSpec]:
    return {name: sharding.spec for name, sharding in by_path(shardings(tree, mesh)).items()}


@pytest.mark.parametrize(
    "mesh, where",
    [
        (abstract(2, 4), {"embed": "fsdp"}),
        (abstract(1, 4, tensor=2), {"embed": "fsdp", "heads": "tensor"}),  # 2 does not divide the 11 of the vocabulary
        (abstract(1, 2, sequence=4), {"embed": ("fsdp", "sequence")}),
        (abstract(1, 4, slices=2), {"embed": "fsdp"}),
        (abstract(), {}),
    ],
)
def test_every_parameter_lies_by_rule(mesh, where):
    found = specs(params(width=8), mesh)
    assert found == by_rule(**where)
    # A matrix that no rule names would be copied to every device without a word.
    assert all(any(name.endswith(suffix) for suffix, _ in PARAMETER_AXES) for name in found)


def test_a_vocabulary_that_divides_lies_on_tensor():
    assert spec(("vocab", "embed"), (151_936, 2560), abstract(1, 256, tensor=4)) == PartitionSpec("tensor", "fsdp")


def test_an_axis_of_the_mesh_serves_one_axis_of_an_array():
    with using((("embed", ("fsdp",)), ("mlp", ("fsdp", "tensor")))):
        assert spec(("embed", "mlp"), (8, 8), abstract(1, 2, tensor=2)) == PartitionSpec("fsdp", None)
        assert spec((None, "mlp"), (8, 8), abstract(1, 2, tensor=2)) == PartitionSpec(None, ("fsdp", "tensor"))


def test_a_size_lies_on_as_many_axes_as_divide_it():
    assert spec(("embed",), (6,), abstract(1, 2, sequence=4)) == PartitionSpec("fsdp")


def test_nothing_is_constrained_without_a_mesh():
    x = jnp.zeros((2, 3))
    assert constrain(x, "rows", "tokens") is x


def test_model_info_names_shape_axes_sharding_and_bytes():
    config = Qwen3Config(width=8, **SIZES)
    mesh = Mesh().build()
    text = model_info(state_layout(config, tiny.STAGES["pair"], tiny.OPTIMIZER.build(4), mesh).params)
    line = next(line for line in text.splitlines() if line.startswith("layers.attention.q.kernel"))
    assert line.split() == ["layers.attention.q.kernel", "3x8x12", "layers", "embed", "heads", "-", "-", "-", "1,152"]
    assert f"parameters {config.parameters:,}" in text


@pytest.mark.parametrize("width, fsdp", [(8, 3), (6, 4), (7, 2)])
def test_a_width_that_does_not_divide_is_on_every_device(width, fsdp):
    for name, found in specs(params(width), abstract(1, fsdp)).items():
        assert all(axis is None for axis in found), name


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
        assert found[name] == by_rule(embed="fsdp")[name.partition("u.")[2]], name
    assert {f"params.{name}" for name in BY_RULE} <= layout.keys()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.mesh == mesh for leaf in layout.values())


def test_scalars_and_vectors_that_are_not_listed_are_on_every_device():
    tree = {"step": jnp.int32(0), "embed": {"embedding": jnp.zeros(8)}, "other": jnp.zeros(8)}
    assert {axis for found in specs(tree, abstract(1, 4)).values() for axis in found} <= {None}


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"other": {"kernel": jnp.zeros((8, 8))}}, "other.kernel has 2 axes and is not listed.*Mesh.parameter_axes"),
        ({"attention": {"q": {"kernel": jnp.zeros((8, 8))}}}, r"2 axes and is listed with the 3 axes .*q.kernel\)"),
    ],
)
def test_a_matrix_that_is_not_listed_is_bad_input(tree, message):
    """It would be copied to every device."""
    with pytest.raises(BadInput, match=message):
        specs(tree, abstract(1, 4))


def test_another_model_family_names_its_parameters_in_the_mesh():
    tree = {"experts": {"gate": {"kernel": jnp.zeros((4, 8, 6))}}, "attention": {"q": {"kernel": jnp.zeros((8, 6))}}}
    mesh = Mesh(
        rules=(("expert", ("tensor",)), ("embed", ("fsdp",))),
        parameter_axes=(("experts.gate.kernel", ("expert", "embed", "mlp")), ("q.kernel", ("embed", "heads"))),
    )
    with using(mesh.rules, mesh.parameter_axes):
        found = specs(tree, abstract(1, 4, tensor=2))
    assert found == {
        "experts.gate.kernel": PartitionSpec("tensor", "fsdp", None),
        "attention.q.kernel": PartitionSpec("fsdp", None),
    }
    with pytest.raises(BadInput, match="Mesh.rules: 'expert' is not one of"):
        Mesh(rules=mesh.rules)


def test_an_axis_that_is_not_divided_gives_one_warning(caplog):
    tree = {"embed": {"embedding": jnp.zeros((23, 8))}}
    for _ in range(2):
        specs({"params": tree, "mu": tree, "nu": tree}, abstract(1, 4, tensor=5))
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "parameter embed.embedding: the mesh axes tensor=5 do not divide its axis vocab of size 23, so each of their "
        "devices holds all of it"
    ]


def test_rows_are_spread_over_the_devices_that_do_not_share_them():
    assert batch_sharding(abstract(2, 4)).spec == PartitionSpec(("data", "fsdp"))
    assert batch_sharding(abstract(1, 4, tensor=2, sequence=2, slices=2)).spec == PartitionSpec(("slice", "fsdp"))
    assert replicated(abstract(2, 4)).spec == PartitionSpec()


@pytest.mark.parametrize("data, fsdp", [(1, 2), (2, 1), (64, 64)])
def test_a_mesh_larger_than_the_devices_is_bad_input(data, fsdp):
    with pytest.raises(BadInput) as caught:
        Mesh(data=data, fsdp=fsdp).build(jax.devices()[:1])
    message = str(caught.value)
    given = [f"{name}={size}" for name, size in (("data", data), ("fsdp", fsdp)) if size > 1]
    for part in (*given, f"needs {data * fsdp} devices", "has 1 (cpu)", "lower Mesh."):
        assert part in message


@pytest.mark.parametrize("sizes", [{"data": 0}, {"fsdp": 0}, {"data": -1, "fsdp": -1}, {"tensor": -2}])
def test_a_mesh_of_no_device_is_bad_input(sizes):
    with pytest.raises(BadInput, match="set each size to 1 or more, one of them to -1"):
        Mesh(**sizes)


def test_one_axis_takes_what_the_others_leave():
    assert Mesh(fsdp=-1, tensor=4).sizes(32) == {"slice": 1, "data": 1, "fsdp": 8, "tensor": 4, "sequence": 1}
    with pytest.raises(BadInput, match=r"3 does not divide 32 devices; change Mesh.tensor"):
        Mesh(fsdp=-1, tensor=3).sizes(32)


@pytest.mark.parametrize("rules, wrong", [((("embd", ("fsdp",)),), "embd"), ((("embed", ("fsdb",)),), "fsdb")])
def test_a_rule_of_an_unknown_axis_is_bad_input(rules, wrong):
    with pytest.raises(BadInput, match=f"Mesh.rules: '{wrong}' is not one of"):
        Mesh(rules=rules)


@pytest.mark.parametrize(
    "mesh, sizes, message",
    [
        (abstract(2, 4), {"batch_size": 12}, "a batch of 12 cannot be shared by 8 devices .*batch_size a multiple"),
        (abstract(sequence=3), {"row_length": 32}, "rows of 32 tokens cannot be shared by 3 devices .*Mesh.sequence"),
        (abstract(tensor=2), {}, "1 key heads cannot be shared by 2 devices .*lower Mesh.tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_the_stage_is_bad_input(mesh, sizes, message):
    fitting = {"batch_size": 8, "row_length": 32, "kv_heads": SIZES["kv_heads"], "mlp_width": SIZES["mlp_width"]}
    with pytest.raises(BadInput, match=message):
        Mesh().require(mesh, **{**fitting, **sizes})


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


@pytest.mark.slow
def test_eight_devices_share_a_table_and_a_batch():
    found = json.loads(simulated.run("-c", EIGHT))
    assert found["shape"] == {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1, "sequence": 1} and found[
        "devices"
    ] == list(range(8))
    assert found["part"] == [0, 1, 2]  # the first ones; the rest idle
    # Each copy of the table is four strips of two columns; there are two copies.
    assert found["shards"] == [[11, 2]] * 8
    strips = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    assert found["columns"] == strips * 2
    assert found["rows"] == [[2 * device, 2 * device + 1] for device in range(8)]
    assert "needs 9 devices, this machine has 8" in found["refused"]
