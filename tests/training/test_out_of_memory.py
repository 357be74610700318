"""A device that runs out of memory: what the message names, at run time on this machine and from the TPU's compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny, tpu_compile

from pplx_jax.core.errors import Failed
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.out_of_memory import DeviceMemory, OutOfMemory, explained
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.train_stage import train

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Large(DiffusionStage):
    """Diffusion that sorts 64 TiB of random bits, more than any machine has."""

    def loss(self, model, batch, step):
        loss, metrics = super().loss(model, batch, step)
        return loss + jnp.sort(jax.random.bits(step.rng, (1 << 20, 1 << 24)))[0, 0], metrics


def test_it_names_what_a_device_holds_and_what_to_change(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    table = tiny.tiny_tables(tmp_path, vocabulary)["diffusion"]
    stage = Large(
        **vars(tiny.STAGES["diffusion"]),
    )
    training = tiny.training("diffusion", stage=stage, ema_decay=0.9, remat_policy=("mlp",))
    with pytest.raises(OutOfMemory) as raised:
        train(tmp_path / "run", training, tiny.tiny_config(vocabulary), table, vocabulary, mesh=Mesh(), seed=0)
    message = str(raised.value)
    size = 332 * tiny.WIDTH * 4 / 2**30
    assert message.startswith("diffusion: a device is out of memory: Out of memory allocating ")
    assert f"parameters embed.embedding float32[332, 16] {size:.3g} GiB" in message
    for part in ("average ", "optimizer ", "batch "):
        assert part in message.split("The largest")[0]
    assert "temporaries of the step 2.62e+05 GiB" in message
    first, second = (message.index(text) for text in ("Large.microbatches=2\n", "diffusion/Training.remat_policy=()"))
    assert first < second < message.index("Large.batch_size")
    assert isinstance(raised.value, Failed) and isinstance(raised.value.__cause__, jax.errors.JaxRuntimeError)
    assert not (tmp_path / "run" / "finished.json").exists()


def test_other_errors_of_the_runtime_pass():
    training = tiny.training("diffusion")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with explained(training, Mesh().build(), DeviceMemory(state=None)):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")


MEASURE = """
import sys
sys.path.insert(0, "tests")
import jax, numpy as np
from jax.experimental import topologies
from helpers import tiny
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.training.out_of_memory import DeviceMemory, OutOfMemory, explained
from pplx_jax.training.train_state import make_step, state_layout
from pplx_jax.training.trainer import CompiledStep, StepClock

def measure(topology):
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = Mesh(data=2, fsdp=2)
    devices = mesh.build(description.devices)
    training, optimizer = tiny.training("pair"), tiny.OPTIMIZER.build(4)
    config = Qwen3Config(vocab_size=1024, width=128, mlp_width=4096, layers=1, query_heads=2, kv_heads=1, head_dim=64)
    count = 1 << 17
    with mesh.activate(devices):
        shapes = dict.fromkeys(("tokens", "segment_ids", "positions", "chunk_ids"), (count, 128))
        shapes |= {"query": (1024, 2), "document": (1024, 2), "query_hash": (1024,), "document_hash": (1024,)}
        placed = batch_sharding(devices)
        batch = {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=placed) for name, shape in shapes.items()}
        layout = state_layout(config, training.stage, optimizer, devices)
        memory = DeviceMemory(layout)
        step = make_step(training.stage, config, optimizer, steps=4, seed=0, mask_id=2, mesh=devices)
        clock = StepClock.__new__(StepClock)
        clock._spent, clock._meter = {}, type("Meter", (), {"lost": lambda *_: None})()
        try:
            with explained(training, devices, memory):
                CompiledStep(step, clock, memory)(layout, batch)
        except OutOfMemory as error:
            return str(error)
"""


@tpu_compile.needs_libtpu
def test_the_compiler_of_a_tpu_is_understood():
    message = tpu_compile.compile_all(MEASURE, [("v5e:2x2",)])("v5e:2x2")
    assert message.startswith("pair: a device is out of memory: ")
    assert "exceeds available HBM (15.75G)" in message or "of 15.75G hbm" in message
    assert "temporaries of the step unknown, it is not compiled" in message
    assert "batch tokens int32[131072, 128]" in message and "PairStage.microbatches=2 (one more forward" in message
