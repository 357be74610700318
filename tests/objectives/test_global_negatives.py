"""Negatives of all devices: the numbers of one device, no device with all scores, and embeddings all that travels."""

import pytest
from helpers import simulated

pytestmark = pytest.mark.slow

PROGRAM = r'''
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
from pplx_jax.objectives.contextual import contextual_loss
from pplx_jax.objectives.contrastive import pair_loss, triplet_loss
from pplx_jax.objectives.similarity import cosine_similarity
from pplx_jax.parallel.mesh import Mesh, batch_sharding

COLLECTIVE = re.compile(r" = (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
COUNT, WIDTH, NEGATIVES, CHUNKS = 512, 8, 2, 2
INTEGERS = False
devices = Mesh(data=4, fsdp=2).build()

def case(count):
    generator = np.random.default_rng(0)
    vectors = lambda *shape: jnp.asarray(generator.integers(-127, 128, (*shape, WIDTH)), jnp.float32)
    hashes = [jnp.asarray(generator.integers(0, 2 * count, count), jnp.int32) for _ in range(2)]
    return {
        "query": vectors(count), "document": vectors(count), "negatives": vectors(count, NEGATIVES),
        "chunks": vectors(count, CHUNKS), "query_hash": hashes[0], "document_hash": hashes[1],
        "negative_hash": jnp.asarray(generator.integers(0, 2 * count, (count, NEGATIVES)), jnp.int32),
        "chunk": jnp.asarray(generator.integers(0, CHUNKS, count), jnp.int32),
    }

def pair(x):
    hashes = {name: x[name] for name in ("document_hash", "query_hash")}
    return pair_loss(x["query"], x["document"], temperature=0.3, integers=INTEGERS, **hashes)

def triplet(x):
    hashes = {name: x[name] for name in ("document_hash", "query_hash", "negative_hash")}
    return triplet_loss(x["query"], x["document"], x["negatives"], temperature=0.3, integers=INTEGERS, **hashes)

def contextual(x):
    valid = jnp.ones((x["query"].shape[0], CHUNKS), bool)
    return contextual_loss(
        x["query"], x["chunks"], valid, x["chunk"], x["document"], x["document_hash"], beta=0.3, temperature=0.3,
        mask_duplicates=True, query_hash=x["query_hash"], integers=INTEGERS,
    )

def elements(text, kind="[a-z]+[0-9]+"):
    found = re.findall(kind + r"\[([0-9,]*)\]", text)
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in found]

def graded(loss):
    def split(vectors, others):
        return loss({**vectors, **others})
    return jax.jit(jax.value_and_grad(split, has_aux=True))

def parts(x):
    names = {name for name, array in x.items() if array.dtype == jnp.float32}
    return {name: x[name] for name in names}, {name: x[name] for name in x.keys() - names}

def over_devices(loss, count):
    """What it gives, what each device holds and what travels, in elements."""
    with jax.set_mesh(devices):
        arguments = jax.device_put(parts(case(count)), batch_sharding(devices))
        compiled = graded(loss).lower(*arguments).compile()
        found = compiled(*arguments)
    text = compiled.as_text()
    moved = " ".join(COLLECTIVE.findall(text))
    return found, elements(text), elements(moved), elements(moved, "s8")

candidates = {pair: COUNT, triplet: COUNT * (1 + NEGATIVES), contextual: COUNT * CHUNKS}
for loss, most in candidates.items():
    expected = graded(loss)(*parts(case(COUNT)))
    found, held, travelled, bytes_travelled = over_devices(loss, COUNT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)
    metrics = expected[0][1]
    assert loss is contextual or metrics["duplicates"] > 0
    # A device holds the scores of its own queries at the most, an eighth.
    assert max(held) <= COUNT * most // 8, (loss, max(held))
    # Each text's vector, forward and backward, with copies of neither; and four integers a query or document.
    embeddings = (2 * COUNT + most + (COUNT if loss is contextual else 0)) * WIDTH
    half = over_devices(loss, COUNT // 2)[2]
    print(loss.__name__, "embeddings", embeddings, "travelled", sum(travelled), "half the batch", sum(half))
    assert sum(half) < sum(travelled) <= 4 * embeddings + 24 * most, (loss, sum(travelled), embeddings)
    # It grows as the batch, not as its square, and a share of the scores would be seen.
    assert sum(travelled) < 2.2 * sum(half)
    assert max(travelled) <= most * WIDTH < COUNT * most // 8 and not bytes_travelled
    # Integers travel as bytes to where they are compared, and only their gradients as floats.
    INTEGERS = True
    found, held, travelled, bytes_travelled = over_devices(loss, COUNT)
    INTEGERS = False
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)
    compared = most + (0 if loss is triplet else COUNT) + (COUNT if loss is contextual else 0)
    assert compared * WIDTH <= sum(bytes_travelled) <= 2 * compared * WIDTH, (loss, bytes_travelled)

# Control: a loss whose scores travel, as one from documents to queries makes them, is caught by the same measure.
def both_ways(x):
    axes = ("data", "fsdp")
    gathered = jax.shard_map(
        lambda query, document: jax.lax.all_gather(cosine_similarity(query, document), axes, tiled=True),
        in_specs=(PartitionSpec(axes), PartitionSpec()), out_specs=PartitionSpec(), check_vma=False,
    )
    return jnp.mean(jax.nn.logsumexp(gathered(x["query"], x["document"]), axis=0)), {}

_, held, travelled, _ = over_devices(both_ways, COUNT)
assert max(held) >= COUNT * COUNT and max(travelled) >= COUNT * COUNT, (max(held), max(travelled))
'''


def test_over_eight_devices_only_embeddings_travel():
    simulated.run("-c", PROGRAM)
