"""`Embedder`: order, independence of texts, late chunking, and every form an embedding is given in."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.data.vocabulary import train_vocabulary
from pplx_jax.errors import BadInput
from pplx_jax.model_folder import ModelFolder
from pplx_jax.models import embedder as embedder_module
from pplx_jax.models.embedder import Embedder
from pplx_jax.models.encoding import embed
from pplx_jax.models.qwen3 import Qwen3Config
from pplx_jax.train_state import bind, initial_params

WIDTH, LIMIT = 32, 300
VERBS = ("read", "write", "open", "close", "merge", "split", "rank", "pool")
NOUNS = ("file", "index", "vector", "document", "query", "table", "shard", "batch")
TEXTS = [f"{verb} the {noun}" for verb, noun in itertools.product(VERBS, NOUNS)]
# Of every length up to the limit, the empty text among them; more than one forward pass takes.
MIXED = [" ".join(TEXTS[i : i + i % 17]) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ModelFolder:
    vocabulary = train_vocabulary(TEXTS, tmp_path_factory.mktemp("vocabulary") / "vocabulary.model", 340)
    config = Qwen3Config(
        vocab_size=vocabulary.size,
        width=WIDTH,
        mlp_width=32,
        layers=1,
        query_heads=2,
        kv_heads=1,
        head_dim=16,
        max_length=LIMIT,
        embedding_init_std=1.0,
        dtype="float32",
    )
    params = jax.tree.map(np.asarray, initial_params(config, 0))
    return ModelFolder(config=config, vocabulary=vocabulary, params=params, kind="v1", stage="pair")


@pytest.fixture(scope="module")
def model(folder) -> Embedder:
    return Embedder(folder, batch_tokens=512, slots=8)


@pytest.fixture(scope="module")
def reference(folder):
    """Pooled vectors of documents (chunks of token ids), each alone in a row, at the start of it."""
    encoder = bind(folder.config, jax.device_put(folder.params))
    forward = jax.jit(lambda batch: embed(encoder, batch, slots=16)[0])

    def vectors(documents: list[list[list[int]]]) -> list[np.ndarray]:
        result = []
        for chunks in documents:
            tokens, chunk_ids = [], []
            for place, ids in enumerate(chunks):
                separator = [folder.vocabulary.separator_id] if place else []
                tokens += [*separator, *ids]
                chunk_ids += [0] * len(separator) + [place + 1] * len(ids)
            padding = [0] * (LIMIT - len(tokens))
            batch = {
                "tokens": tokens + padding,
                "segment_ids": [1] * len(tokens) + padding,
                "positions": list(range(len(tokens))) + padding,
                "chunk_ids": chunk_ids + padding,
            }
            pooled = forward({name: jnp.asarray([row], jnp.int32) for name, row in batch.items()})
            result.append(np.asarray(pooled[0, : len(chunks)]))
        return result

    return vectors


def floats(model: Embedder, texts, **options) -> np.ndarray:
    return model.encode(texts, quantization="none", **options)


def chunk_floats(model: Embedder, documents, **options) -> list[np.ndarray]:
    return model.encode_documents(documents, quantization="none", **options)


def long_text(model: Embedder, tokens: int) -> str:
    """A text of at least so many tokens."""
    text = ""
    while len(model.vocabulary.encode(text)) < tokens:
        text = f"{text} {TEXTS[len(text) % len(TEXTS)]}"
    return text


# Texts


def test_a_text_gets_the_vector_it_has_alone_whatever_the_list(model, reference):
    assert "" in MIXED and len(MIXED) > 8
    expected = [vectors[0] for vectors in reference([[model.vocabulary.encode(text)] for text in MIXED])]
    for order in (np.arange(len(MIXED)), np.random.default_rng(0).permutation(len(MIXED))):
        found = floats(model, [MIXED[i] for i in order])
        assert found.shape == (len(MIXED), WIDTH)
        np.testing.assert_allclose(found, np.stack(expected)[order], rtol=0, atol=1e-6)
    # Control: the texts' vectors are far apart, so a wrong order would show.
    distances = np.abs(np.stack(expected)[:, None] - np.stack(expected)).max(axis=-1)
    same = np.array([[a == b for a in MIXED] for b in MIXED])
    assert distances[~same].min() > 1e-2


def test_lists_longer_than_a_block_keep_their_order(model, monkeypatch):
    whole = floats(model, MIXED)
    monkeypatch.setattr(embedder_module, "_TEXTS_AT_ONCE", 7)
    np.testing.assert_allclose(floats(model, MIXED), whole, rtol=0, atol=1e-6)


def test_another_text_of_the_same_row_moves_no_bit(model):
    first, other = (np.array(model.vocabulary.encode(text)) for text in ("read the file", "close the shard"))
    # The other text's tokens in another order: as many of them, so that the row is laid out alike.
    before, after = model.encode_tokens([first, other]), model.encode_tokens([first, other[::-1]])
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_the_empty_text_is_a_zero_vector(model):
    np.testing.assert_array_equal(floats(model, [""]), np.zeros((1, WIDTH)))
    np.testing.assert_array_equal(model.encode(["", "read"])[0], np.zeros(WIDTH, np.int8))
    assert model.encode(["", "read"])[1].any()


def test_an_empty_list_gives_nothing(model):
    assert model.encode([]).shape == (0, WIDTH) and model.encode([]).dtype == np.int8
    assert model.encode([], quantization="ubinary").shape == (0, WIDTH // 8)
    assert model.encode_documents([]) == []
    assert model.encode_tokens([]).shape == (0, WIDTH)
    assert model.count_tokens([]).shape == (0,)


def test_token_ids_encode_as_their_text(model):
    ids = [np.array(model.vocabulary.encode(text), np.int32) for text in MIXED]
    np.testing.assert_array_equal(model.encode_tokens(ids), floats(model, MIXED))
    np.testing.assert_array_equal(model.count_tokens(MIXED), [len(text) for text in ids])


def test_an_iterator_of_texts_is_a_list_of_them(model):
    np.testing.assert_array_equal(model.encode(text for text in TEXTS[:3]), model.encode(TEXTS[:3]))


# Late chunking


def test_chunks_are_pooled_in_the_context_of_their_document(model, reference):
    documents = [TEXTS[:3], TEXTS[3:4], [], TEXTS[4:9], ["", "read", ""]]
    found = chunk_floats(model, documents)
    expected = reference([[model.vocabulary.encode(chunk) for chunk in document] for document in documents])
    assert [vectors.shape for vectors in found] == [(len(document), WIDTH) for document in documents]
    for vectors, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(vectors, exact, rtol=0, atol=1e-6)


def test_a_neighbour_changes_a_chunk_but_never_a_text(model):
    here, other = ["read the file", "close the shard"], ["read the file", "close the index"]
    assert np.abs(chunk_floats(model, [here])[0][0] - chunk_floats(model, [other])[0][0]).max() > 1e-3
    np.testing.assert_allclose(floats(model, here)[0], floats(model, other)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantization", ["none", "int8", "ubinary"])
def test_a_query_is_a_document_of_one_chunk(model, quantization):
    (alone,) = model.encode_documents([["read the file"]], quantization=quantization)
    np.testing.assert_array_equal(alone, model.encode(["read the file"], quantization=quantization))


def test_the_separators_name_in_a_chunk_does_not_split_it(model, reference):
    chunk = "read the file<sep>close the shard"
    document = [chunk, "open the index"]
    (found,) = chunk_floats(model, [document])
    assert found.shape == (2, WIDTH)
    assert model.vocabulary.separator_id not in model.vocabulary.encode(chunk)
    (expected,) = reference([[model.vocabulary.encode(chunk) for chunk in document]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_an_empty_chunk_is_a_zero_vector_in_its_place(model):
    (found,) = chunk_floats(model, [["read the file", "", "close the shard"]])
    assert found.shape == (3, WIDTH)
    np.testing.assert_array_equal(found[1], 0)
    assert found[0].any() and found[2].any()


def test_a_document_may_have_more_chunks_than_a_row_has_slots(folder, reference):
    few_slots = Embedder(folder, batch_tokens=256, slots=4)
    documents = [TEXTS[:9], TEXTS[9:11], TEXTS[11:24]]
    expected = reference([[few_slots.vocabulary.encode(chunk) for chunk in document] for document in documents])
    for vectors, exact in zip(chunk_floats(few_slots, documents), expected, strict=True):
        np.testing.assert_allclose(vectors, exact, rtol=0, atol=1e-6)


# Forms


def test_every_quantization_is_of_the_pooled_vector(model):
    v = floats(model, MIXED)
    assert v.dtype == np.float32
    expected = {
        "tanh": np.tanh(v),
        "int8": np.rint(127 * np.tanh(v)).astype(np.int8),
        "binary": np.where(v >= 0, 1, -1).astype(np.int8),
        "ubinary": np.packbits(v >= 0, axis=-1),
    }
    for quantization, exact in expected.items():
        found = model.encode(MIXED, quantization=quantization)
        assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    (chunks,) = model.encode_documents([TEXTS[:3]])
    assert chunks.dtype == np.int8


def test_bit_orders_are_those_of_numpy(model):
    bits = floats(model, TEXTS) >= 0
    for order in ("big", "little"):
        packed = model.encode(TEXTS, quantization="ubinary", bit_order=order)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, np.packbits(bits, axis=-1, bitorder=order))
    assert not np.array_equal(packed, np.packbits(bits, axis=-1, bitorder="big"))


@pytest.mark.parametrize("quantization", ["none", "tanh", "int8", "binary", "ubinary"])
def test_dims_are_a_prefix(model, quantization):
    whole = model.encode(TEXTS, quantization=quantization)
    some = model.encode(TEXTS, quantization=quantization, dims=16)
    kept = 16 // 8 if quantization == "ubinary" else 16
    np.testing.assert_array_equal(some, whole[:, :kept])
    (chunks,) = model.encode_documents([TEXTS[:3]], quantization=quantization, dims=16)
    assert chunks.shape == (3, kept)
    assert model.dims == WIDTH


# Bad input and the limit


def test_a_text_past_the_limit_is_named(model):
    too_long = long_text(model, LIMIT + 1)
    with pytest.raises(BadInput, match=f"text 2 has {len(model.vocabulary.encode(too_long))} tokens.*takes {LIMIT}"):
        model.encode(["read", "", too_long])
    with pytest.raises(BadInput, match="text 1 has"):
        model.encode_documents([["read"], [too_long, "write"]])
    with pytest.raises(BadInput, match="text 0 has"):
        model.encode_tokens([np.array(model.vocabulary.encode(too_long))])


def test_a_text_of_just_the_limit_is_taken_whole(model, reference):
    ids = model.vocabulary.encode(long_text(model, LIMIT))[:LIMIT]
    ((expected,),) = reference([[ids]])
    np.testing.assert_allclose(model.encode_tokens([ids])[0], expected, rtol=0, atol=1e-6)


def test_truncation_keeps_the_first_tokens(model):
    too_long = long_text(model, LIMIT + 50)
    found = floats(model, ["read", too_long], truncate=True)
    kept = model.vocabulary.encode(too_long)[:LIMIT]
    np.testing.assert_allclose(found[1], model.encode_tokens([kept])[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0], floats(model, ["read"])[0], rtol=0, atol=1e-6)


def test_truncation_of_a_document_cuts_its_longest_chunk(model, reference):
    too_long = long_text(model, LIMIT)
    document = ["read the file", too_long, "close the shard"]
    (found,) = chunk_floats(model, [document], truncate=True)
    ids = [model.vocabulary.encode(chunk) for chunk in document]
    ids[1] = ids[1][: LIMIT - 2 - len(ids[0]) - len(ids[2])]
    (expected,) = reference([ids])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_str_is_not_a_list_of_texts(model):
    with pytest.raises(BadInput, match="texts is a single str"):
        model.encode("read the file")
    with pytest.raises(BadInput, match="document 1 is a single str"):
        model.encode_documents([["read"], "write"])
    with pytest.raises(BadInput, match="entry 1 is a NoneType"):
        model.encode(["read", None])


@pytest.mark.parametrize("dims", [0, -1, WIDTH + 1])
def test_dims_outside_the_model_are_refused(model, dims):
    with pytest.raises(BadInput, match=f"dims={dims} of a model of {WIDTH} dimensions"):
        model.encode(["read"], dims=dims)
