"""Cost and savings of the gradient cache: memory by batch size, and operations and time compared with the plain step.

    python benchmarks/gradient_cache.py --output benchmarks/results/gradient_cache.json

Memory is XLA's count of the temporaries of a compiled step; the step does not run. Operations are those of matrix
products, counted in the program before compilation, with loops times their length. Times are of whole steps. Plain and
cached steps alternate, so that other load on the machine affects both, and the smallest time of each counts.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax
import numpy as np

from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.stages.triplet import TripletStage
from pplx_jax.training.train_state import make_step, new_state, state_layout

LENGTH, SLOTS, NEGATIVES = 128, 4, 1
SEQUENCES_PER_MICROBATCH = 64
BATCHES = (256, 1024, 4096, 16384)
TIMED, PARTS = 128, 4  # batch size of the cost measurement, and its microbatches
SMALL = Qwen3Config(
    vocab_size=2048, width=256, mlp_width=768, layers=4, query_heads=4, kv_heads=2, head_dim=64, dtype="float32"
)


def batch_of(count: int) -> dict[str, np.ndarray]:
    """Sequences of four texts of 32 tokens; each query with its document and a hard negative."""
    rows = count * (2 + NEGATIVES) // SLOTS
    texts = np.arange(count * (2 + NEGATIVES))
    places = np.stack([texts // SLOTS, texts % SLOTS], axis=1).astype(np.int32).reshape(count, 2 + NEGATIVES, 2)
    slots = np.repeat(np.arange(1, SLOTS + 1, dtype=np.int32), LENGTH // SLOTS)
    generator = np.random.default_rng(0)
    return {
        "tokens": generator.integers(4, SMALL.vocab_size, (rows, LENGTH)).astype(np.int32),
        "segment_ids": np.tile(slots, (rows, 1)),
        "chunk_ids": np.tile(slots, (rows, 1)),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32) % (LENGTH // SLOTS), (rows, 1)),
        "query": places[:, 0],
        "document": places[:, 1],
        "negatives": places[:, 2:],
        "query_hash": np.arange(count, dtype=np.int32),
        "document_hash": np.arange(count, dtype=np.int32),
        "negative_hash": -1 - np.arange(count * NEGATIVES, dtype=np.int32).reshape(count, NEGATIVES),
    }


def step_of(config: Qwen3Config, count: int, microbatches: int):
    """The jitted step of the triplet stage, its optimizer and its mesh."""
    stage = TripletStage(
        batch_size=count, row_length=LENGTH, slots=SLOTS, negatives=NEGATIVES, microbatches=microbatches
    )
    optimizer = Optimizer(peak_learning_rate=1e-3, warmup_steps=0).build(10)
    mesh = Mesh().build()
    step = make_step(stage, config, optimizer, steps=10, seed=0, mask_id=2, mesh=mesh)
    return step, stage, optimizer, mesh


def temporary_bytes(config: Qwen3Config, count: int, microbatches: int) -> int:
    """Temporaries of the compiled step, which does not run."""
    step, stage, optimizer, mesh = step_of(config, count, microbatches)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of(count))
    with jax.set_mesh(mesh):
        compiled = step.lower(state_layout(config, stage, optimizer, mesh), shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def products(jaxpr) -> int:
    """Operations of all matrix products of a program; a multiply-add counts as two."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shared = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted], dtype=np.int64)
            total += 2 * int(np.prod(equation.outvars[0].aval.shape, dtype=np.int64) * shared)
            continue
        if equation.primitive.name == "cond":  # branches by platform, which all compute the same
            total += max(products(branch.jaxpr) for branch in equation.params["branches"])
            continue
        inner = sum(products(one) for one in _programs(equation.params.values()))
        total += inner * equation.params.get("length", 1)
    return total


def _programs(values):
    for value in values:
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "eqns"):
                yield one
            elif hasattr(one, "jaxpr"):
                yield one.jaxpr


def operations(config: Qwen3Config, count: int, microbatches: int) -> int:
    """Operations of one step."""
    step, stage, optimizer, mesh = step_of(config, count, microbatches)
    with jax.set_mesh(mesh):
        traced = jax.make_jaxpr(step)(state_layout(config, stage, optimizer, mesh), batch_of(count))
    return products(traced.jaxpr)


def seconds(config: Qwen3Config, count: int, choices: tuple[int, ...], repetitions: int) -> dict[int, float]:
    """Returns the smallest time of a step by its number of microbatches."""
    run = {}
    for microbatches in choices:
        step, stage, optimizer, mesh = step_of(config, count, microbatches)
        with jax.set_mesh(mesh):
            batch = jax.device_put(batch_of(count))
            state = new_state(initial_params(config, 0), optimizer, mesh)
            compiled = step.lower(state, batch).compile()
            state, metrics = compiled(state, batch)
        run[microbatches] = (compiled, state, batch)
    taken: dict[int, list[float]] = {microbatches: [] for microbatches in choices}
    for _ in range(repetitions):
        for microbatches, (compiled, state, batch) in run.items():
            started = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            taken[microbatches].append(time.perf_counter() - started)
            run[microbatches] = (compiled, state, batch)
    return {microbatches: min(times) for microbatches, times in taken.items()}


def measure(repetitions: int) -> dict:
    """Returns all figures."""
    memory = {}
    for count in BATCHES:
        rows = count * (2 + NEGATIVES) // SLOTS
        memory[count] = {
            "microbatches": rows // SEQUENCES_PER_MICROBATCH,
            "cached_bytes": temporary_bytes(SMALL, count, rows // SEQUENCES_PER_MICROBATCH),
            "plain_bytes": temporary_bytes(SMALL, count, 1),
            "embeddings_bytes": count * (2 + NEGATIVES) * SMALL.width * 4,
        }
        print(count, memory[count], flush=True)
    cost = {}
    for name, remat in (("activations kept", False), ("blocks recomputed", True)):
        config = dataclasses.replace(SMALL, remat=remat)
        flops = {parts: operations(config, TIMED, parts) for parts in (1, PARTS)}
        times = seconds(config, TIMED, (1, PARTS), repetitions)
        cost[name] = {
            "operations_ratio": flops[PARTS] / flops[1],
            "seconds_plain": times[1],
            "seconds_cached": times[PARTS],
            "seconds_ratio": times[PARTS] / times[1],
        }
        print(name, cost[name], flush=True)
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "memory": memory, "cost": cost}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    figures = measure(options.repetitions)
    options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
