"""What a stage computes on a mesh, for comparison with what it computes on another: by one process or by several.

Tables are drawn from a seed, so every process makes the same; rows are packed, documents repeat, and the last batch
goes over the end of a pass and leaves rows, and so whole devices, empty. Run as a program it prints what `train`
returns for each preset that it is given and each stage, and what `controls` returns, as one JSON object.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np

from pplx_jax.configuration import load
from pplx_jax.data.batches.order import shuffled
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.kernels import quantization
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.objectives import contextual, contrastive
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.stages.contextual import ContextualStage
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.stages.pair import PairStage
from pplx_jax.training.stages.triplet import TripletStage
from pplx_jax.training.train_state import make_step, new_state, trained_params

STEPS, SEED, EXAMPLES, BATCH, ROWS, LENGTH, SLOTS, CHUNKS, NEGATIVES = 3, 1, 20, 8, 16, 32, 8, 3, 2
# No mesh of eight devices divides the vocabulary.
CONFIG = Qwen3Config(
    vocab_size=75, width=32, mlp_width=32, layers=2, query_heads=8, kv_heads=4, head_dim=8, dtype="float32"
)
# Adam divides by the gradient's size: with a tiny epsilon, rounding errors of gradients of nothing would become steps.
OPTIMIZER = Optimizer(peak_learning_rate=0.001, warmup_steps=0, eps=1e-3)
STAGES = {
    "diffusion": DiffusionStage(batch_size=BATCH, row_length=LENGTH),
    "pair": PairStage(batch_size=BATCH, row_length=LENGTH, slots=SLOTS, prefixes=(16, 32)),
    "contextual": ContextualStage(batch_size=BATCH, row_length=LENGTH, slots=SLOTS, chunks=CHUNKS),
    "triplet": TripletStage(batch_size=BATCH, row_length=LENGTH, slots=SLOTS, negatives=NEGATIVES, microbatches=2),
}


class Table:
    """Random token features of a stage; some documents are copies of others."""

    pad_id, separator_id, folder, manifest, count = 0, 1, pathlib.Path("drawn"), {}, EXAMPLES

    def __init__(self, stage: str):
        generator = np.random.default_rng(0)

        def texts(count: int, shortest: int, longest: int) -> Ragged:
            lengths = generator.integers(shortest, longest + 1, count)
            return Ragged.from_arrays([generator.integers(2, CONFIG.vocab_size, length) for length in lengths])

        copies = np.arange(EXAMPLES, dtype=np.int32) % (EXAMPLES - 4)
        chunk_counts = generator.integers(1, CHUNKS + 1, EXAMPLES - 4)
        self._features = {
            "tokens": texts(EXAMPLES, 6, 30),
            "query": texts(EXAMPLES, 2, 5),
            "document": copies if stage == "contextual" else texts(EXAMPLES, 4, 12),
            "document_hash": copies,
            "negatives": np.array(
                [generator.choice(np.delete(np.arange(EXAMPLES), row), NEGATIVES) for row in range(EXAMPLES)], np.int32
            ),
            "chunk": generator.integers(0, chunk_counts[copies]).astype(np.int32),
            "chunks": texts(int(chunk_counts.sum()), 2, 6),
            "chunks_of_document": np.concatenate([[0], np.cumsum(chunk_counts)]),
        }

    def __contains__(self, name: str) -> bool:
        return name in self._features and name != "source"

    def __getitem__(self, name: str):
        return self._features[name]


def batches(stage: str) -> list[dict[str, np.ndarray]]:
    """Returns the batch of each step; the third has examples of two passes, and no text on its last devices."""
    table, found = Table(stage), []
    for step in range(STEPS):
        places = np.arange(step * BATCH, (step + 1) * BATCH)
        found.append(STAGES[stage].batch.pack(table, shuffled(places, EXAMPLES, SEED), ROWS).arrays)
    assert any((batch["segment_ids"][-2:] == 0).all() for batch in found)
    assert all((batch["segment_ids"].max(axis=1) > 1).any() for batch in found)
    return found


def preset(name: str) -> Mesh:
    """Returns a mesh of `gin/meshes/`."""
    return load(["gin/recipes/quickstart_scratch.gin", f"gin/meshes/{name}.gin"]).arguments["run"]["mesh"]


@functools.cache
def parameters():
    """Returns the parameters that every run starts from."""
    return jax.tree.map(np.asarray, initial_params(CONFIG, SEED))


def train(stage: str, mesh: Mesh, given: list[dict[str, np.ndarray]] | None = None) -> dict[str, object]:
    """A few steps of a stage on a mesh of this machine's (or these machines') devices.

    Returns:
      Of each step the loss and the gradient's norm; the gradient of the first step, as Adam's first moment has it; and
      the parameters after the last: flat float32 arrays.
    """
    devices, learner = mesh.build(), OPTIMIZER.build(STEPS)
    mesh.require(devices, batch_size=BATCH, row_length=LENGTH, kv_heads=CONFIG.kv_heads, mlp_width=CONFIG.mlp_width)
    with mesh.activate(devices):
        params = trained_params(parameters(), STAGES[stage])
        state = new_state(params, learner, devices)
        step = make_step(STAGES[stage], CONFIG, learner, steps=STEPS, seed=SEED, mask_id=3, mesh=devices)
        placement, numbers, gradient = batch_sharding(devices), [], None
        for batch in given or batches(stage):
            placed = {
                name: jax.make_array_from_callback(array.shape, placement, lambda index, array=array: array[index])
                for name, array in batch.items()
            }
            state, metrics = step(state, placed)
            numbers.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
            if gradient is None:
                moments = [part.mu for part in state.optimizer if hasattr(part, "mu")]
                gradient = flat(moments[0], devices)
        return {"numbers": numbers, "gradient": gradient, "params": flat(state.params, devices)}


def flat(tree, devices) -> np.ndarray:
    """Returns all leaves as one array, complete on every process."""
    everywhere = jax.NamedSharding(devices, jax.P())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
    return np.concatenate([np.ravel(leaf.addressable_data(0)) for leaf in jax.tree.leaves(whole)])


def without_rounding() -> None:
    """Removes the rounding of INT8: at its edges the last bit of a sum decides, and meshes add in different orders."""
    quantization._round = lambda x, rounding: x
    for losses in (contrastive, contextual):  # what is no integer cannot travel as INT8
        losses.compact = lambda vectors, integers: None


def as_lists(found: dict[str, object]) -> dict[str, object]:
    """Returns the result of `train` in a form for JSON."""
    return {name: np.asarray(value, np.float64).tolist() for name, value in found.items()}


def controls() -> dict[str, list[float]]:
    """First losses of the pair stage on eight devices that have to differ from the true one.

    `rolled`: each query has its neighbour's document; `local`: the mean of losses over each half's own negatives.
    """
    given, mesh = batches("pair")[:1], preset("fsdp")
    rolled = [{**given[0], "document": np.roll(given[0]["document"], 1, axis=0)}]
    half = dataclasses.replace(STAGES["pair"], batch_size=BATCH // 2)
    names = ("query", "query_hash", "document", "document_hash")
    halves = [
        [{name: array[part] if name in names else array for name, array in given[0].items()}]
        for part in (slice(0, BATCH // 2), slice(BATCH // 2, None))
    ]
    single = Mesh()

    def first(stage, mesh, batch) -> float:
        STAGES["control"] = stage
        return train("control", mesh, batch)["numbers"][0][0]

    local = [first(half, single, batch) for batch in halves]
    return {
        "true": [first(STAGES["pair"], mesh, given)],
        "rolled": [first(STAGES["pair"], mesh, rolled)],
        "local": [float(np.mean(local))],
    }


def main() -> None:
    without_rounding()
    found = {}
    for name in sys.argv[1:]:
        # Under the preset that most runs use, diffusion is computed in microbatches; it has to equal the whole batch.
        STAGES["diffusion"] = dataclasses.replace(STAGES["diffusion"], microbatches=2 if name == "fsdp" else 1)
        found[name] = {stage: as_lists(train(stage, preset(name))) for stage in STAGES}
    made = initial_params(CONFIG, SEED, preset("fsdp_tensor").build())
    same = jax.tree.map(lambda one, other: bool((np.asarray(one) == other).all()), made, parameters())
    print(json.dumps({"found": found, "controls": controls(), "initial": all(jax.tree.leaves(same))}))


if __name__ == "__main__":
    main()
