"""`Embedder`: order, independence of texts, late chunking, and every form an embedding is given in."""

import dataclasses
import itertools
import logging
import os

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.core import native_logs
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.inference import packed_encoder, sequence_plan
from pplx_jax.inference.embedder import Embedder
from pplx_jax.inference.overflow import windows
from pplx_jax.kernels import attention as attention_api
from pplx_jax.kernels.attention import blockwise
from pplx_jax.kernels.attention.reference import attention as reference_attention
from pplx_jax.models.embedding import embed
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.models.transformer import Qwen3Config

WIDTH, LIMIT = 32, 300
VERBS = ("read", "write", "open", "close", "merge", "split", "rank", "pool")
NOUNS = ("file", "index", "vector", "document", "query", "table", "shard", "batch")
TEXTS = [f"{verb} the {noun}" for verb, noun in itertools.product(VERBS, NOUNS)]
# Of every length up to the limit, the empty text among them; more than one forward pass takes.
MIXED = [" ".join(TEXTS[i : i + i % 17]) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> LoadedModel:
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
    return LoadedModel(config=config, vocabulary=vocabulary, params=params, kind="v1", stage="pair")


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


def test_a_text_has_the_same_vector_alone_and_in_any_list(model, reference):
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
    monkeypatch.setattr(sequence_plan, "_TEXTS_AT_ONCE", 7)
    np.testing.assert_allclose(floats(model, MIXED), whole, rtol=0, atol=1e-6)


def test_another_text_of_the_same_row_moves_no_bit(model):
    first, other = (np.array(model.vocabulary.encode(text)) for text in ("read the file", "close the shard"))
    # The other text's tokens in another order: as many of them, so that the row is laid out alike.
    before, after = model.encode_tokens([first, other]), model.encode_tokens([first, other[::-1]])
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_of_a_deterministic_model_do_not_depend_on_the_call(folder, monkeypatch, dtype):
    config = dataclasses.replace(folder.config, dtype=dtype)
    loaded = dataclasses.replace(folder, config=config)
    texts, documents = MIXED[:20], [[TEXTS[0], MIXED[9]], ["", TEXTS[1]], TEXTS[:11]]
    shapes = []
    run = packed_encoder._embed

    def watched(encoder, batch, slots):
        shapes.append(batch["tokens"].shape[0])
        return run(encoder, batch, slots)

    monkeypatch.setattr(packed_encoder, "_embed", watched)
    model = Embedder(loaded, batch_tokens=512, slots=8, deterministic=True)
    together = model.encode(texts, quantization="none")
    assert shapes == [1] * len(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(model.encode([text], quantization="none"), vector[None])
    of_documents = model.encode_documents(documents, quantization="none")
    for document, vectors in zip(documents, of_documents, strict=True):
        np.testing.assert_array_equal(model.encode_documents([document, [TEXTS[2]]], quantization="none")[0], vectors)
    long = "read the file " * 200
    split = model.encode([long, *texts], quantization="none", overflow="split")
    np.testing.assert_array_equal(split, [*model.encode([long], quantization="none", overflow="split"), *together])
    # Control: otherwise the shapes depend on the call, and the vectors agree to rounding.
    usual = Embedder(loaded, batch_tokens=512, slots=8)
    shapes.clear()
    tolerance = 1e-5 if dtype == "float32" else 0.1
    np.testing.assert_allclose(usual.encode(texts, quantization="none"), together, atol=tolerance)
    assert len(shapes) < len(texts)


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
    with pytest.raises(BadInput, match="document 1 has"):
        model.encode_documents([["read"], [too_long, "write"]])
    with pytest.raises(BadInput, match="text 0 has"):
        model.encode_tokens([np.array(model.vocabulary.encode(too_long))])


def test_a_far_too_long_text_is_refused_before_it_is_tokenized(model, monkeypatch):
    spaces = "read" + " " * 100_000  # one token: length alone says nothing about white space
    assert model.encode([spaces]).any()
    monkeypatch.setattr(type(model.vocabulary), "encode_batch", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(BadInput, match=f"text 1 has at least [0-9]+ tokens, the model takes {LIMIT}; shorten it"):
        model.encode(["read", "read " * 100_000])
    with pytest.raises(BadInput, match="document 1 has at least"):
        model.encode_documents([["read"], ["write", "read " * 100_000]])


def test_a_text_of_just_the_limit_is_taken_whole(model, reference):
    ids = model.vocabulary.encode(long_text(model, LIMIT))[:LIMIT]
    ((expected,),) = reference([[ids]])
    np.testing.assert_allclose(model.encode_tokens([ids])[0], expected, rtol=0, atol=1e-6)


def test_truncation_keeps_the_first_tokens(model):
    too_long = long_text(model, LIMIT + 50)
    found = floats(model, ["read", too_long], overflow="truncate")
    kept = model.vocabulary.encode(too_long)[:LIMIT]
    np.testing.assert_allclose(found[1], model.encode_tokens([kept])[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0], floats(model, ["read"])[0], rtol=0, atol=1e-6)


def test_a_shorter_limit_may_be_chosen(folder, model):
    short = Embedder(folder, batch_tokens=512, slots=8, max_length=4)
    text = long_text(model, 9)
    kept = model.vocabulary.encode(text)[:4]
    found = floats(short, [text], overflow="truncate")[0]
    np.testing.assert_allclose(found, model.encode_tokens([kept])[0], rtol=0, atol=1e-6)
    with pytest.raises(BadInput, match="text 0 has [0-9]+ tokens, the model takes 4"):
        short.encode([text])
    for wrong in (0, LIMIT + 1):
        with pytest.raises(BadInput, match=f"max_length={wrong}: the model takes {LIMIT} tokens; give a number from 1"):
            Embedder(folder, max_length=wrong)


def test_truncation_of_a_document_cuts_its_longest_chunk(model, reference):
    too_long = long_text(model, LIMIT)
    document = ["read the file", too_long, "close the shard"]
    (found,) = chunk_floats(model, [document], overflow="truncate")
    ids = [model.vocabulary.encode(chunk) for chunk in document]
    ids[1] = ids[1][: LIMIT - 2 - len(ids[0]) - len(ids[2])]
    (expected,) = reference([ids])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "ids, words",
    [
        ([[5], [5, 10**9]], "ids of text 1 have 1000000000; the model has ids 0 to"),
        ([[5, -1]], "ids of text 0 have -1"),
        ([np.array([2**31 + 5], np.uint32)], "ids of text 0 have 2147483653"),
        ([[5, 6.5]], r"ids of text 0 are float64\[2\]; give a list of integers"),
        ([[True, False]], r"ids of text 0 are bool\[2\]"),
        ([["5"]], "ids of text 0 are <U1"),
        ([[[5]]], r"ids of text 0 are int64\[1, 1\]"),
        ([7], r"ids of text 0 are int64\[\]"),
        ([[[5], [6, 7]]], "ids of text 0 are object"),
    ],
)
def test_impossible_ids_are_named(model, ids, words):
    with pytest.raises(BadInput, match=words):
        model.encode_tokens(ids)


@pytest.mark.parametrize("counts", [[1], [1, 2], [3, -1], [1.0, 1.0], [[2]], 2])
def test_counts_are_of_all_chunks(model, counts):
    with pytest.raises(BadInput, match="integers that add up to the 2 chunks"):
        model.encode_tokens([[5, 6], [7]], np.array(counts))


def test_ids_without_texts(model):
    assert model.encode_tokens([]).shape == (0, WIDTH)
    assert not model.encode_tokens([[]]).any()
    np.testing.assert_array_equal(model.encode_tokens([[5], [6]], np.array([2], np.uint8))[0],
                                  model.encode_tokens([[5], [6]], np.array([2]))[0])  # fmt: skip
    table = model.config.vocab_size
    assert model.encode_tokens([[0, table - 1]]).any()


def test_a_str_is_not_a_list_of_texts(model):
    with pytest.raises(BadInput, match="texts is a single str"):
        model.encode("read the file")
    with pytest.raises(BadInput, match="document 1 is a single str"):
        model.encode_documents([["read"], "write"])
    with pytest.raises(BadInput, match="entry 1 is a NoneType"):
        model.encode(["read", None])
    with pytest.raises(BadInput, match="texts is a single str"):
        model.count_tokens("read the file")


def test_half_of_a_surrogate_pair_is_no_text(model):
    with pytest.raises(BadInput, match="texts: entry 1 contains half of a surrogate pair"):
        model.encode(["read", "\udcff"])
    with pytest.raises(BadInput, match="document 1: entry 0 contains half"):
        model.encode_documents([["read"], ["\ud800"]])


def test_weights_that_are_not_finite_give_no_vectors(folder, monkeypatch):
    params = jax.tree.map(np.array, folder.params)
    params["layers"]["mlp"]["up"]["kernel"][0, 0, 0] = np.nan
    broken = Embedder(dataclasses.replace(folder, params=params))
    with pytest.raises(BadInput, match="text 0 has a non-finite vector"):
        broken.encode(["read"], quantization="binary")

    def spoil_the_last(self, blocks, places, done):
        vectors = np.zeros((places, WIDTH), np.float32)
        vectors[-1] = np.inf
        return vectors

    monkeypatch.setattr(packed_encoder.PackedEncoder, "_encode", spoil_the_last)
    with pytest.raises(BadInput, match="document 1 has a non-finite vector"):
        Embedder(folder).encode_documents([["read", "write"], ["", "close"]])


@pytest.mark.parametrize("dims", [0, -1, WIDTH + 1, 16.0, "16", True])
def test_dims_that_the_model_has_not_are_refused(model, dims):
    with pytest.raises(BadInput, match=f"dims={dims!r} of a model of {WIDTH} dimensions"):
        model.encode(["read"], dims=dims)


# Over the limit, split


def test_the_windows_of_a_split_cover_a_document_once():
    generator = np.random.default_rng(0)
    for _ in range(300):
        limit = int(generator.integers(2, 40))
        overlap = int(generator.integers(0, limit))
        size = limit + int(generator.integers(1, 200))
        boundaries = np.unique(np.append(generator.integers(0, size, 10), 0))
        cut = windows(size, limit, overlap, boundaries)
        assert [window.own for window in cut[1:]] == [window.own_stop for window in cut[:-1]]
        assert (cut[0].start, cut[0].own, cut[-1].stop, cut[-1].own_stop) == (0, 0, size, size)
        for window in cut:
            assert window.start <= window.own <= window.own_stop <= window.stop == window.start + limit
        for window, following in itertools.pairwise(cut):
            assert window.stop - following.start >= overlap


def test_windows_hand_over_at_a_chunk_boundary():
    first, second = windows(150, 100, 20, np.array([0, 40, 80, 120]))
    assert (first.own_stop, second.own) == (80, 80)
    first, second = windows(150, 100, 20, np.array([0, 10]))  # none is shared: in the middle of 50 and 100
    assert (first.own_stop, second.own) == (75, 75)


@pytest.mark.parametrize("overlap", [0, 100])
def test_a_split_text_is_the_mean_over_all_its_tokens(model, folder, overlap):
    ids = np.array(model.vocabulary.encode(long_text(model, 700))[:700])
    found = model._encoder.pool([ids], np.array([1]), overflow="split", overlap=overlap)[0]
    encoder = bind(folder.config, jax.device_put(folder.params))
    total = np.zeros(WIDTH)
    for window in windows(700, LIMIT, overlap, np.array([0])):
        ones = jnp.ones((1, LIMIT), jnp.int32)
        tokens = jnp.asarray(ids[None, window.start : window.stop], jnp.int32)
        hidden = encoder(tokens, ones, jnp.arange(LIMIT)[None])[0]
        total += np.asarray(hidden[window.own - window.start : window.own_stop - window.start], np.float64).sum(axis=0)
    np.testing.assert_allclose(found, total / 700, rtol=0, atol=1e-5)


def test_a_split_document_keeps_every_chunk(model):
    chunks = [*TEXTS, "", *TEXTS]
    documents = [TEXTS[:2], chunks, TEXTS[2:4]]
    assert model.count_tokens(chunks).sum() > 2 * LIMIT
    found = chunk_floats(model, documents, overflow="split", overlap=60)
    assert [len(vectors) for vectors in found] == [2, len(chunks), 2]
    assert not found[1][len(TEXTS)].any() and found[1].any(axis=1).sum() == len(chunks) - 1
    # The others are as without it.
    for place in (0, 2):
        np.testing.assert_allclose(found[place], chunk_floats(model, [documents[place]])[0], rtol=0, atol=1e-6)
    # A chunk in the middle of a window sees its neighbours; the same words elsewhere have other ones.
    assert np.abs(found[1][5] - floats(model, [TEXTS[5]])[0]).max() > 1e-3


def test_overflow_and_overlap_are_checked(model):
    too_long = long_text(model, LIMIT + 1)
    with pytest.raises(BadInput, match="overflow='cut' is not one of error, truncate, split"):
        model.encode(["read"], overflow="cut")
    for overlap in (-1, LIMIT):
        with pytest.raises(BadInput, match=f"overlap={overlap} with a model of {LIMIT} tokens"):
            model.encode([too_long], overflow="split", overlap=overlap)
    most = (LIMIT + 1) // 2
    for count in (most + 1, LIMIT + 1):
        with pytest.raises(BadInput, match=f"document 0 has {count} chunks, but a model of {LIMIT} .* takes {most}"):
            model.encode_documents([["read the file"] * count], overflow="truncate")
    (found,) = model.encode_documents([["read the file"] * most], overflow="truncate")
    assert found.any(axis=1).all()
    (found,) = model.encode_documents([["read the file"] * (most - 9) + [""] * 15], overflow="truncate")
    assert found.any(axis=1).tolist() == [True] * (most - 9) + [False] * 15
    (found,) = model.encode_documents([["read"] * (LIMIT + 1)], overflow="split")
    assert found.shape == (LIMIT + 1, WIDTH)


# Length


def largest_array(jaxpr) -> int:
    """Elements of the largest array anywhere in a program."""
    sizes = [np.prod(variable.aval.shape) for equation in jaxpr.eqns for variable in equation.outvars]
    inner = [
        largest_array(part) for equation in jaxpr.eqns for part in jax.extend.core.jaxprs_in_params(equation.params)
    ]
    return max([*map(int, sizes), *inner], default=0)


@pytest.mark.parametrize("slots", [64, 16384])
def test_the_longest_text_needs_no_array_of_length_by_length(folder, slots):
    length = 32768
    config = dataclasses.replace(folder.config, max_length=length)
    batch = {
        name: jax.ShapeDtypeStruct((1, length), jnp.int32)
        for name in ("tokens", "segment_ids", "positions", "chunk_ids")
    }
    encoder = bind(config, jax.device_put(folder.params))
    traced = packed_encoder._embed.trace(encoder, batch, slots)
    # One block of queries against the row, for each of two heads.
    assert largest_array(traced.jaxpr.jaxpr) == 2 * blockwise.BLOCK_Q * length
    assert traced.lower().compile().memory_analysis().temp_size_in_bytes < length * length / 4
    # Control: the walk sees what the reference attention would hold.
    query = jax.ShapeDtypeStruct((1, 2048, 2, 16), jnp.float32)
    key = jax.ShapeDtypeStruct((1, 2048, 1, 16), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    assert largest_array(jax.make_jaxpr(reference_attention)(query, key, key, ids).jaxpr) == 2 * 2048 * 2048


def test_a_text_longer_than_whole_rows_of_attention(folder, reference):
    config = dataclasses.replace(folder.config, max_length=4096)
    long_model = Embedder(dataclasses.replace(folder, config=config), batch_tokens=512)
    length = attention_api.MAX_REFERENCE_LENGTH + 100
    ids = np.array(long_model.vocabulary.encode(long_text(long_model, length))[:length])
    batch = {
        "tokens": ids[None],
        "segment_ids": np.ones((1, length), np.int32),
        "positions": np.arange(length)[None],
        "chunk_ids": np.ones((1, length), np.int32),
    }
    encoder = bind(config, jax.device_put(folder.params))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_api, "MAX_REFERENCE_LENGTH", length)
        expected = embed(encoder, jax.tree.map(jnp.asarray, batch), 1)[0][0, 0]
    np.testing.assert_allclose(long_model.encode_tokens([ids])[0], expected, rtol=0, atol=1e-5)


# Around it


def test_a_short_list_costs_a_short_pass(model, monkeypatch):
    shapes = []
    run = packed_encoder._embed

    def watched(encoder, batch, slots):
        shapes.append(batch["tokens"].shape)
        return run(encoder, batch, slots)

    monkeypatch.setattr(packed_encoder, "_embed", watched)
    model.encode(["read the file"])
    assert shapes == [(1, 64)]


def test_matrices_are_kept_in_the_precision_they_are_used_in(folder):
    half = dataclasses.replace(folder, config=dataclasses.replace(folder.config, dtype="bfloat16"))
    params = packed_encoder.in_compute_precision(folder.params, "bfloat16")
    assert params["embed"]["embedding"].dtype == jnp.bfloat16
    assert params["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert params["final_norm"]["scale"].dtype == np.float32
    # A CPU keeps float32 and rounds in every call.
    found = Embedder(half).encode(TEXTS, quantization="none")
    rounded = dataclasses.replace(half, params=params)
    np.testing.assert_array_equal(found, Embedder(rounded).encode(TEXTS, quantization="none"))


def test_empty_texts_are_flagged(model, caplog):
    logging.getLogger("absl").propagate = True
    model.encode_documents([["read"], ["write", "", "open", ""]])
    assert "2 of 5 texts have no tokens and give zero vectors; the first is document 1, chunk 1" in caplog.text
    np.testing.assert_array_equal(model.is_empty(["read", "", " "]), [False, True, True])
    caplog.clear()
    model.encode(["read"])
    assert not caplog.text


@pytest.mark.parametrize("chips", [False, True])
def test_loading_keeps_libtpu_quiet_where_no_tpu_is(tmp_path, monkeypatch, chips):
    monkeypatch.setattr(native_logs, "has_tpu", lambda *_: chips)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    with pytest.raises(BadInput):
        Embedder.load(tmp_path)
    assert ("TPU_SKIP_MDS_QUERY" in os.environ) != chips


def test_queries_are_texts(model):
    np.testing.assert_array_equal(
        model.encode_queries(TEXTS, quantization="ubinary", dims=16),
        model.encode(TEXTS, quantization="ubinary", dims=16),
    )


def test_progress_is_on_standard_error_where_asked(model, capsys):
    model.encode(MIXED)
    assert capsys.readouterr() == ("", "")
    model.encode(MIXED, progress=True)
    output, errors = capsys.readouterr()
    assert not output and f"text {len(MIXED)}/{len(MIXED)}" in errors and "encode" in errors
    model.encode_documents([TEXTS[:2]], progress=True)
    assert "document 1/1" in capsys.readouterr().err


def test_a_form_that_cannot_be_is_refused_before_the_work(model, monkeypatch):
    monkeypatch.setattr(model, "_encoder", None)
    with pytest.raises(BadInput, match="quantization='int4'"):
        model.encode(TEXTS, quantization="int4")
    with pytest.raises(BadInput, match="bit_order='middle'"):
        model.encode(TEXTS, quantization="ubinary", bit_order="middle")
    with pytest.raises(BadInput, match="20 dimensions do not fill whole bytes"):
        model.encode_documents([TEXTS], quantization="ubinary", dims=20)


def test_a_text_is_cut_by_the_models_own_tokens(model):
    text = ". ".join(TEXTS)
    chunks = model.chunk(text, tokens=20)
    assert "".join(chunks) == text and len(chunks) > 3
    assert model.count_tokens(chunks).max() <= 20
    assert model.encode_documents([chunks], overflow="split")[0].shape == (len(chunks), WIDTH)


def test_attention_by_the_implementation_that_was_asked_for(folder, model, monkeypatch):
    asked = []
    run = attention_api._RUN["blockwise"]
    monkeypatch.setitem(attention_api._RUN, "blockwise", lambda *a, **o: asked.append(True) or run(*a, **o))
    texts = ["read the index", "a b c"]
    wanted = model.encode(texts, quantization="none")
    found = Embedder(folder, batch_tokens=512, slots=8, attention_implementation="blockwise")
    np.testing.assert_allclose(found.encode(texts, quantization="none"), wanted, rtol=0, atol=1e-5)
    assert asked and found.fingerprint == model.fingerprint
    # A model whose stage was trained with a TPU's kernel is read anywhere; asking for it here is refused.
    config = dataclasses.replace(folder.config, attention_implementation="splash")
    trained = Embedder(dataclasses.replace(folder, config=config), batch_tokens=512, slots=8)
    np.testing.assert_array_equal(trained.encode(texts, quantization="none"), wanted)
    with pytest.raises(BadInput, match="'splash' needs a TPU, this is cpu"):
        Embedder(folder, attention_implementation="splash")
