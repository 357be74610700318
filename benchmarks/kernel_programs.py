"""The programs that `kernels.py` compares: attention and pooling of this package, of JAX and of tokamax."""

import contextlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

KV_HEADS, HEAD_DIM, WIDTH, SLOTS = 8, 128, 1024, 64
# The name of a kernel call in a compiled program, and the VMEM that the compiler gave it.
_VMEM = re.compile(
    r'%([\w.\-]+) = [^\n]*"tpu_custom_call".*?'
    r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"',
    re.DOTALL,
)
Program = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


class Shapes:
    """Arguments of a program on one device."""

    def __init__(self, device: jax.Device, length: int, heads: int):
        self.mesh = jax.sharding.Mesh([device], ("data",))
        self.length, self.heads = length, heads
        self.ids = self.array(1, length, dtype=jnp.int32)

    def array(self, *shape, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        sharding = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def heads_first(self, *leading: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Query, key and value [..., heads, L, E]."""
        counts = (self.heads, KV_HEADS, KV_HEADS)
        return tuple(self.array(*leading, count, self.length, HEAD_DIM) for count in counts)


def compile_program(name: str, topology: str, length: int, heads: int, *sizes: int) -> dict:
    """Compiles one program in this process and returns its memory: VMEM by kernel, and HBM bytes per sequence."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    shapes = Shapes(device, length, heads)
    program = next(make for prefix, make in _PROGRAMS.items() if name.startswith(prefix))
    function, arguments = program(name, shapes, *sizes)
    with contextlib.ExitStack() as stack:
        if name.startswith("ours"):
            stack.enter_context(jax.set_mesh(shapes.mesh))  # tells our kernels the device
        elif name.startswith("tokamax"):
            stack.enter_context(jax.default_device(device))  # tells tokamax the device
        compiled = jax.jit(function).lower(*arguments).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    sequences = arguments[0].shape[0] if name.startswith("ours") else 1
    return {
        "vmem_bytes": {kernel: int(size) for kernel, size in _VMEM.findall(compiled.as_text())},
        "temporary_bytes": memory.temp_size_in_bytes // sequences,
        "hbm_bytes": cost.get("bytes accessed", 0.0) / sequences,
    }


def _gradient(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    def loss(*arguments):
        return attend(*arguments).astype(jnp.float32).sum()

    return jax.grad(loss, argnums=(0, 1, 2))


def _pool(name: str, shapes: Shapes) -> Program:
    from pplx_jax.kernels.segment_pool import reference, segment_pool

    pool = segment_pool if name == "pool" else reference.segment_pool

    def function(hidden, ids):
        return pool(hidden, ids, SLOTS, output="int8")[0]

    return function, (shapes.array(1, shapes.length, WIDTH), shapes.ids)


def _ours(name: str, shapes: Shapes) -> Program:
    from pplx_jax.kernels.attention import attention

    length = shapes.length
    sequences = max(1, 32768 // length)  # too large for XLA to keep the arguments in VMEM
    counts = (shapes.heads, KV_HEADS, KV_HEADS)
    arrays = (shapes.array(sequences, length, count, HEAD_DIM) for count in counts)
    function = _gradient(attention) if name == "ours_backward" else attention
    return function, (*arrays, shapes.array(sequences, length, dtype=jnp.int32))


def _blocks(forward: bool, sizes: tuple[int, ...]) -> dict[str, int]:
    block_q, block_kv, compute = sizes
    if forward:
        return {"block_q": block_q, "block_kv": block_kv, "block_kv_compute": compute}
    blocks = {"block_q": 512, "block_kv": 2048, "block_kv_compute": 512}
    return blocks | {"block_q_dkv": block_q, "block_kv_dkv": block_kv, "block_kv_dkv_compute": compute}


def _splash(name: str, shapes: Shapes, *sizes: int) -> Program:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    forward, fused = name == "splash_forward", name == "splash_fused"
    blocks = _blocks(forward, sizes)
    if name == "splash_unfused":
        blocks |= {"block_q_dq": sizes[0], "block_kv_dq": sizes[1]}
    run = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((shapes.length, shapes.length))] * shapes.heads),
        block_sizes=splash.BlockSizes(**blocks, use_fused_bwd_kernel=fused),
    )

    def attend(query, key, value, ids):
        return run(query, key, value, segment_ids=splash.SegmentIds(ids[0], ids[0]))

    return attend if forward else _gradient(attend), (*shapes.heads_first(), shapes.ids)


def _tokamax(name: str, shapes: Shapes, *sizes: int) -> Program:
    sys.argv[1:] = []  # tokamax reads the command line
    from tokamax._src.ops.experimental.tpu.splash_attention import base, splash_attention_mask
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as splash

    forward, scheduler = name == "tokamax_forward", bool(sizes[3])
    run = splash.make_splash_mha_single_device(
        splash_attention_mask.FullMask((shapes.length, shapes.length)),
        config=splash.SplashConfig(**_blocks(forward, sizes[:3]), use_experimental_scheduler=scheduler),
    )

    def attend(query, key, value, ids):
        return run(query, key, value, base.SegmentIds(ids[0], ids[0]))

    return attend if forward else _gradient(attend), (*shapes.heads_first(), shapes.ids)


def _flash(name: str, shapes: Shapes, *sizes: int) -> Program:
    del name  # forward only
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    def attend(query, key, value, ids):  # it has no grouped queries: keys and values are repeated
        key, value = (jnp.repeat(x, shapes.heads // KV_HEADS, axis=1) for x in (key, value))
        blocks = flash.BlockSizes(block_q=sizes[0], block_k_major=sizes[1], block_k=sizes[2], block_b=1)
        return flash.flash_attention(query, key, value, segment_ids=flash.SegmentIds(ids, ids), block_sizes=blocks)

    return attend, (*shapes.heads_first(1), shapes.ids)


_PROGRAMS = {"pool": _pool, "ours": _ours, "splash": _splash, "tokamax": _tokamax, "flash": _flash}
