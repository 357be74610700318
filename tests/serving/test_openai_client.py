"""The official `openai` package against a real server: the same embeddings as `Embedder`, in every encoding."""

import base64

import numpy as np
import openai
import pytest

TEXTS = ["read the file", "close the index", "write a vector of the table", "open file"]
DOCUMENTS = [["read the file", "close the index"], ["open file"], ["write", "", "a vector"]]


def numbers(entries, dtype):
    return np.stack([np.frombuffer(base64.b64decode(entry.embedding), dtype) for entry in entries])


def close_integers(found, expected):
    """Equal but where another shape of batch moved a float across the middle between two integers."""
    assert found.shape == expected.shape
    difference = np.abs(found.astype(np.int32) - expected.astype(np.int32))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_the_client_as_it_is_gets_what_encode_gives(client, model):
    answer = client.embeddings.create(model="tiny", input=TEXTS)
    assert [entry.index for entry in answer.data] == [0, 1, 2, 3]
    assert answer.model == "tiny" and answer.object == "list" and answer.data[0].object == "embedding"
    close_integers(np.array([entry.embedding for entry in answer.data]), model.encode(TEXTS))
    tokens = int(model.count_tokens(TEXTS).sum())
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_a_single_text_is_a_list_of_one(client, model):
    answer = client.embeddings.create(model="tiny", input=TEXTS[0])
    close_integers(np.array([answer.data[0].embedding]), model.encode(TEXTS[:1]))


def test_every_encoding_carries_the_same_numbers(client):
    def create(encoding):
        return client.embeddings.create(model="tiny", input=TEXTS, encoding_format=encoding).data

    plain = np.array([entry.embedding for entry in create("float")])
    assert (plain == np.rint(plain)).all() and np.abs(plain).max() > 20
    np.testing.assert_array_equal(numbers(create("base64"), "<f4"), plain)
    np.testing.assert_array_equal(numbers(create("base64_int8"), np.int8), plain)


def test_bits_come_in_both_orders_and_say_which(client, model):
    for order, asked in (("little", None), ("little", "little"), ("big", "big")):
        body = {} if asked is None else {"bit_order": asked}
        answer = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="base64_binary", extra_body=body)
        assert answer.bit_order == order
        expected = model.encode(TEXTS, quantization="ubinary", bit_order=order)
        np.testing.assert_array_equal(numbers(answer.data, np.uint8), expected)


def test_dimensions_are_a_prefix(client):
    whole = client.embeddings.create(model="tiny", input=TEXTS).data[1].embedding
    some = client.embeddings.create(model="tiny", input=TEXTS, dimensions=8).data[1].embedding
    assert some == whole[:8]


def test_documents_of_chunks(client, model):
    body = {"input": DOCUMENTS, "model": "tiny", "encoding_format": "base64_int8"}
    answer = client.post("/contextualizedembeddings", body=body, cast_to=object)
    assert [document["index"] for document in answer["data"]] == [0, 1, 2]
    for document, expected in zip(answer["data"], model.encode_documents(DOCUMENTS), strict=True):
        assert [chunk["index"] for chunk in document["data"]] == list(range(len(expected)))
        rows = [np.frombuffer(base64.b64decode(chunk["embedding"]), np.int8) for chunk in document["data"]]
        close_integers(np.stack(rows), expected)
    flags = [chunk.get("empty", False) for document in answer["data"] for chunk in document["data"]]
    assert flags == [False, False, False, False, True, False]
    assert not np.frombuffer(base64.b64decode(answer["data"][2]["data"][1]["embedding"]), np.int8).any()
    separators = sum(len(document) - 1 for document in DOCUMENTS)
    tokens = sum(int(model.count_tokens(document).sum()) for document in DOCUMENTS) + separators
    assert answer["usage"]["prompt_tokens"] == tokens


def test_a_query_is_a_document_of_one_chunk_over_http_too(client):
    (document,) = client.post(
        "/contextualizedembeddings", body={"input": [["read the file"]], "model": "tiny"}, cast_to=object
    )["data"]
    text = client.embeddings.create(model="tiny", input="read the file", encoding_format="float")
    assert document["data"][0]["embedding"] == text.data[0].embedding


def test_models_are_listed(client, model):
    (only,) = client.models.list().data
    assert (only.id, only.kind, only.dimensions) == ("tiny", "context_v1", model.dims)
    assert client.models.retrieve("tiny").fingerprint == model.fingerprint
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "other"}, openai.NotFoundError, "'other' is not served here; use 'tiny'"),
        ({"input": [[5, 6]]}, openai.UnprocessableEntityError, "token ids are not supported"),
        ({"input": [5, 6]}, openai.UnprocessableEntityError, "token ids are not supported"),
        ({"input": []}, openai.UnprocessableEntityError, "at least one text"),
        ({"input": ["read", None]}, openai.UnprocessableEntityError, r"input\[1\] is NoneType"),
        ({"dimensions": 17}, openai.UnprocessableEntityError, "17 is not an integer from 1 to 16"),
        ({"encoding_format": "hex"}, openai.UnprocessableEntityError, "'hex' is not one of float"),
        ({"extra_body": {"dimension": 8}}, openai.UnprocessableEntityError, "dimension: unknown field"),
        ({"input": ["read", "file " * 300]}, openai.BadRequestError, r"text 1 has \d+ tokens, the model takes 256"),
        ({"input": ["read"] * 51}, openai.APIStatusError, "51 texts exceed the limit of 50"),
        (
            {"input": ["read file " * 30] * 50},
            openai.APIStatusError,
            r"\d+ tokens .* exceed the limit of 3000",
        ),
    ],
)
def test_refusals_are_openais_errors(client, arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        client.embeddings.create(**{"model": "tiny", "input": "read", **arguments})
    assert caught.value.type == "invalid_request_error"
    if error is openai.APIStatusError:
        assert caught.value.status_code == 413
