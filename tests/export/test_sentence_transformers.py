import numpy as np
import pytest
import torch

from pplx_jax.inference.embedder import Embedder

TEXTS = [
    "read a file line by line",
    "",
    "def read(path):\n    return open(path).read()",
    "text with <sep> and <mask> in it",
    "long " * 500,
]
DOCUMENTS = [TEXTS[:4], ["", "", "last chunk"], [], ["a query"], ["first <sep> chunk", "", "third"], [""]]


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder(model)


@pytest.fixture(scope="module")
def pipeline(exports):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(exports["v1"][0]), device="cpu", trust_remote_code=True)


@pytest.fixture(scope="module")
def contextual(exports):
    from transformers import AutoModel

    return AutoModel.from_pretrained(exports["context_v1"][0], trust_remote_code=True)


def test_int8_is_equal_to_ours_and_the_default_as_floats(pipeline, embedder):
    found = pipeline.encode(TEXTS, batch_size=2, quantization="int8")
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, embedder.encode(TEXTS))
    default = pipeline.encode(TEXTS, batch_size=2)
    assert default.dtype == np.float32
    np.testing.assert_array_equal(default, found)
    assert not found[1].any() and found[0].any()


@pytest.mark.parametrize("quantization", ["binary", "ubinary", "tanh", "none"])
def test_other_quantizations_are_ours(pipeline, embedder, quantization):
    found = pipeline.encode(TEXTS, quantization=quantization)
    expected = embedder.encode(TEXTS, quantization=quantization)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"quantization": "tanh"}, {"quantization": "none"}], ids=str)
def test_what_sentence_transformers_computes_itself(pipeline, options):
    from sentence_transformers import util

    texts = ["read a file", "open a table"]
    found = pipeline.encode(texts, **options)
    scores = pipeline.similarity(found, found)
    assert scores.shape == (2, 2) and scores.diagonal().tolist() == pytest.approx([1, 1], abs=1e-5)
    assert [hits[0]["corpus_id"] for hits in util.semantic_search(found, found)] == [0, 1]
    tensors = pipeline.encode(texts, convert_to_tensor=True, **options)
    assert [hits[0]["corpus_id"] for hits in util.semantic_search(tensors, tensors)] == [0, 1]
    normalized = pipeline.encode(texts, normalize_embeddings=True, **options)
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(normalized @ normalized.T, scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["v1", "context_v1"])
def test_the_tokenizer_runs_no_remote_code(exports, kind, monkeypatch):
    """As the card says."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for remote code"))
    folder = exports[kind][0]
    tokenizers = (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        PreTrainedTokenizerFast.from_pretrained(folder),
    )
    first, second = (tokenizer("read a <mask>")["input_ids"] for tokenizer in tokenizers)
    assert first == second and first


def test_prefixes(pipeline, embedder):
    for quantization in ("int8", "ubinary"):
        expected = embedder.encode(TEXTS, quantization=quantization, dims=16)
        np.testing.assert_array_equal(pipeline.encode(TEXTS, quantization=quantization, dims=16), expected)


def test_a_batch_of_empty_texts(pipeline):
    np.testing.assert_array_equal(pipeline.encode(["", ""]), np.zeros((2, 48), np.int8))


def test_a_text_over_the_limit_is_an_error_not_a_cut(pipeline, config):
    word = "a "
    assert pipeline.encode([word * config.max_length]).shape == (1, 48)
    with pytest.raises(ValueError, match="the model takes 1024"):
        pipeline.encode([word * (3 * config.max_length)])


def test_unknown_quantization_and_dims_raise(pipeline):
    with pytest.raises(ValueError, match="not one of int8"):
        pipeline.encode(["x"], quantization="int4")
    with pytest.raises(ValueError, match="give 1 to 48"):
        pipeline.encode(["x"], dims=64)
    with pytest.raises(ValueError, match="multiple of 8"):
        pipeline.encode(["x"], quantization="ubinary", dims=12)


def test_training_has_a_straight_through_gradient(exports):
    from sentence_transformers import SentenceTransformer

    pipeline = SentenceTransformer(str(exports["v1"][0]), device="cpu", trust_remote_code=True).train()
    features = pipeline(pipeline.preprocess(["read a file"]))
    embedding = features["sentence_embedding"]
    assert torch.equal(embedding, embedding.round())
    embedding.sum().backward()
    assert pipeline[0].auto_model.norm.weight.grad.abs().sum() > 0


def test_saved_again_it_opens_again(pipeline, tmp_path):
    from sentence_transformers import SentenceTransformer

    pipeline.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(again.encode(TEXTS), pipeline.encode(TEXTS))
    again.save(str(tmp_path / "twice"))
    twice = SentenceTransformer(str(tmp_path / "twice"), device="cpu", trust_remote_code=True)
    for model in (again, twice):
        with pytest.raises(ValueError, match="the model takes 1024"):
            model.encode(["a " * 5000])
    twice.max_seq_length = 8  # the user's own limit stays
    twice.save(str(tmp_path / "short"))
    short = SentenceTransformer(str(tmp_path / "short"), device="cpu", trust_remote_code=True)
    assert short.max_seq_length == 8
    np.testing.assert_array_equal(short.encode(["a " * 5000]), short.encode(["a " * 6000]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_late_chunking_is_ours(contextual, embedder, batch_size):
    found = contextual.encode(DOCUMENTS, batch_size=batch_size)
    expected = embedder.encode_documents(DOCUMENTS)
    assert [array.shape for array in found] == [(len(document), 48) for document in DOCUMENTS]
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == np.int8


def test_a_chunk_sees_its_document(contextual):
    (alone,), (together,) = contextual.encode([["first"]]), contextual.encode([["first", "second"]])
    assert not np.array_equal(alone[0], together[0])


def test_late_chunking_refuses_bad_documents(contextual, config):
    with pytest.raises(TypeError, match="document 1 is a str"):
        contextual.encode([["a"], "b"])
    with pytest.raises(ValueError, match="document 1 has .* the model takes 1024"):
        contextual.encode([["a"], ["a " * config.max_length, "b"]])
    assert contextual.encode([]) == []


def test_queries_of_the_context_model(exports, contextual):
    from sentence_transformers import SentenceTransformer

    pipeline = SentenceTransformer(str(exports["context_v1"][0]), device="cpu", trust_remote_code=True)
    (query,) = contextual.encode([["a query"]])
    np.testing.assert_array_equal(pipeline.encode(["a query"]), query)
