"""SeqIO tasks: the ids of the TensorFlow-free vocabulary, and tables that hold the corpus, cuts counted."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.gather import Gatherer
from pplx_jax.data.batches.packed_batch import contextual_batch
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources import seqio_tasks as tasks
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.token_hashes import token_hashes
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary

pytestmark = pytest.mark.slow

TEXTS = [
    f"def {verb}_{noun}(path, flags):\n    # {number} ways to {verb} the {noun} ########\n    return {noun}"
    for number, verb in enumerate(["read", "write", "open", "close", "merge", "split", "rank", "pool"])
    for noun in ["file", "index", "vector", "document", "café", "query", "table", "shard"]
]
HARD_TEXTS = [
    *TEXTS,
    "  leading and   inner space\t",
    "ﬁne Ünïcode № ½ 漢字 🙂 \u200b",
    "camelCase HTTPServer snake_case __init__",
    "<mask> <sep> <pad> <unk> ▁",
    "#" * 300 + "-" * 301 + "=" * 77,  # ties between segmentations
    "line\nline\r\n\n\x07bell",
    "a" * 5000,
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A real SentencePiece vocabulary of a few hundred pieces."""
    return train_vocabulary(TEXTS, tmp_path_factory.mktemp("vocabulary") / "vocabulary.model", 329)


LENGTHS = Lengths(text=16, query=9, document=30, chunk=25, chunks=4)
COLUMNS = {"positive": "document", "document_id": "id"}


def source_of(path, kind, **fields):
    return Source(name=kind, kind=kind, path=str(path), **{"columns": COLUMNS, **fields})


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_seqio_gives_the_ids_of_our_vocabulary(vocabulary):
    import tensorflow as tf

    seqio_vocabulary = tasks.seqio_vocabulary(vocabulary)
    ours = [vocabulary.encode(text) for text in HARD_TEXTS]
    assert [list(seqio_vocabulary.encode(text)) for text in HARD_TEXTS] == ours
    assert seqio_vocabulary.encode_tf(tf.constant(HARD_TEXTS)).to_list() == ours
    assert [seqio_vocabulary.encode_tf(tf.constant(text)).numpy().tolist() for text in HARD_TEXTS[:3]] == ours[:3]
    assert seqio_vocabulary.vocab_size == vocabulary.size
    special = {vocabulary.pad_id, vocabulary.mask_id, vocabulary.separator_id}
    assert not special & {token for tokens in ours for token in tokens}


def test_the_task_is_an_unregistered_seqio_task(vocabulary, tmp_path):
    import seqio

    registered = list(seqio.TaskRegistry.names())
    path = write_lines(tmp_path / "text.jsonl", [{"text": text, "source": "s"} for text in HARD_TEXTS])
    task = tasks.source_task(source_of(path, "text"), vocabulary)
    assert isinstance(task, seqio.Task) and list(seqio.TaskRegistry.names()) == registered
    single = task.get_dataset(split="train", shuffle=False)
    assert [record["tokens"].numpy().tolist() for record in single] == [vocabulary.encode(t) for t in HARD_TEXTS]


def test_blocks_keep_the_order_of_the_file(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "RECORDS", 7)
    monkeypatch.setattr(blocks, "CHARACTERS", 500)
    path = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in HARD_TEXTS])
    found = list(tasks.tokenized_blocks(source_of(path, "text"), vocabulary, BadRows("text")))
    assert len(found) > 10
    tokens = [text.tolist() for block in found for text in block["tokens"]]
    assert tokens == [vocabulary.encode(text) for text in HARD_TEXTS]


def test_rows_of_text_are_full_and_hold_every_text_in_order(vocabulary, tmp_path):
    path = write_lines(tmp_path / "text.jsonl", [{"text": text, "source": "s"} for text in HARD_TEXTS])
    manifest = tasks.tokenize_source(source_of(path, "text"), vocabulary, tmp_path / "table", LENGTHS, min_tokens=5)
    table = TokenTable.open(tmp_path / "table", kind="text", vocabulary=vocabulary)
    lengths = table["tokens"].lengths()
    # Room for less than five tokens may be left free; the last row is what is left over.
    assert lengths.max() == 16 and lengths[:-1].min() > 16 - 5
    assert lengths[:-1].mean() > 0.97 * 16
    pieces = []
    for tokens, texts in zip(table["tokens"], table["text_lengths"], strict=True):
        assert texts.sum() == len(tokens) and texts.min() >= 5
        pieces += [piece.tolist() for piece in np.split(tokens, np.cumsum(texts)[:-1])]
    # The pieces put together again are the texts, but for pieces shorter than five tokens.
    short = {"texts": 0, "tokens": 0}
    for text in HARD_TEXTS:
        left = vocabulary.encode(text)
        while len(left) >= 5:
            piece = pieces.pop(0)
            assert piece == left[: len(piece)]
            left = left[len(piece) :]
        short["texts"], short["tokens"] = short["texts"] + bool(left), short["tokens"] + len(left)
    assert not pieces and manifest["too_short"] == short and short["texts"] > 0
    assert manifest["count"] == len(lengths) and manifest["length"] == 16
    assert manifest["vocabulary"]["fingerprint"] == vocabulary.fingerprint


def test_records_of_the_other_kinds(vocabulary, tmp_path):
    path = write_lines(tmp_path / "documents.jsonl", documents_of([3, 2]))
    task = tasks.source_task(source_of(path, "contextual"), vocabulary)
    records = list(task.get_dataset(split="train", shuffle=False))
    assert [int(record["chunk"]) for record in records] == [0, 2, 0]
    chunks = [f"{TEXTS[place]} of 1" for place in range(2)]
    assert records[2]["chunks"].to_list() == [vocabulary.encode(chunk) for chunk in chunks]
    rows = [{"query": "q", "document": TEXTS[0], "negatives": TEXTS[1:3]}]
    path = write_lines(tmp_path / "triplets.jsonl", rows)
    task = tasks.source_task(source_of(path, "triplet", negatives=2), vocabulary)
    (record,) = task.get_dataset(split="train", shuffle=False)
    assert record["negatives"].to_list() == [vocabulary.encode(text) for text in TEXTS[1:3]]


def test_triplets_refer_to_their_negatives(vocabulary, tmp_path):
    rows = [{"query": f"q {n}", "document": TEXTS[n], "negatives": TEXTS[n + 1 : n + 3]} for n in range(4)]
    path = write_lines(tmp_path / "triplets.jsonl", rows)
    source = source_of(path, "triplet", negatives=2)
    tasks.tokenize_source(source, vocabulary, tmp_path / "table", LENGTHS)
    table = TokenTable.open(tmp_path / "table", kind="triplet", vocabulary=vocabulary)
    assert table.count == 4 and len(table["document"]) == 12
    for row in range(4):
        found = [table["document"][place].tolist() for place in table["negatives"][row]]
        assert found == [vocabulary.encode(text)[:30] for text in TEXTS[row + 1 : row + 3]]
    assert table["document_hash"].tolist() == token_hashes(table["document"]).tolist()
    assert len(set(table["document_hash"].tolist())) == 6


def test_pairs(vocabulary, tmp_path):
    records = [
        {"query": f"query {n} " * (n % 5) or "\x07", "document": text, "source": "ab"[n % 2], "path": "p", "line": n}
        for n, text in enumerate(TEXTS)
    ]
    records.append({**records[1], "source": "c"})
    path = write_lines(tmp_path / "pairs.jsonl", records)
    manifest = tasks.tokenize_source(source_of(path, "pair"), vocabulary, tmp_path / "table", LENGTHS)
    table = TokenTable.open(tmp_path / "table", kind="pair", vocabulary=vocabulary)
    kept = [record for record in records if vocabulary.encode(record["query"])]
    assert manifest["empty"] == len(records) - len(kept) > 0
    for name, longest in (("query", 9), ("document", 30)):
        whole = [vocabulary.encode(record[name]) for record in kept]
        assert [text.tolist() for text in table[name]] == [tokens[:longest] for tokens in whole]
        every = [vocabulary.encode(record[name]) for record in records]
        assert manifest["truncated"][name] == sum(len(tokens) > longest for tokens in every) > 0
        assert manifest["cut_tokens"][name] == sum(max(len(tokens) - longest, 0) for tokens in every)
    assert [manifest["sources"][number] for number in table["source"]] == [record["source"] for record in kept]
    hashes = np.asarray(table["document_hash"])
    assert hashes.dtype == np.int32 and hashes[0] == hashes[-1] and len(set(hashes)) == len(kept) - 1


def test_a_name_may_be_of_a_source_of_each_kind(vocabulary, tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", [{"query": "q", "document": TEXTS[0], "text": TEXTS[0]}])
    sources = [dataclasses.replace(source_of(path, kind), name="both") for kind in ("text", "pair")]
    counts = tasks.tokenize_sources(sources, vocabulary, tmp_path / "tokens", LENGTHS)
    assert counts.keys() == {"diffusion", "pair"} and counts["pair"] == {"both": 1}


def test_texts_that_are_equal_once_cut_are_copies(vocabulary, tmp_path):
    long = " ".join(TEXTS)
    texts = [long, long + " and more", "another", "another "]
    path = write_lines(
        tmp_path / "pairs.jsonl", [{"query": f"q {n}", "document": text} for n, text in enumerate(texts)]
    )
    tasks.tokenize_source(source_of(path, "pair"), vocabulary, tmp_path / "table", LENGTHS)
    table = TokenTable.open(tmp_path / "table")
    same = [table["document"][n].tolist() == table["document"][n + 1].tolist() for n in range(3)]
    hashes = table["document_hash"]
    assert same == [bool(hashes[n] == hashes[n + 1]) for n in range(3)] and same[:2] == [True, False]


def documents_of(counts):
    return [
        {
            "id": f"module{number}",
            "source": "package",
            "chunks": [f"{TEXTS[chunk]} of {number}" for chunk in range(count)],
            "queries": [{"text": f"query of chunk {chunk}", "chunk": chunk} for chunk in range(0, count, 2)],
        }
        for number, count in enumerate(counts)
    ]


def test_documents(vocabulary, tmp_path):
    records = documents_of([3, 1, 9, 4])
    records[1]["queries"] = []
    path = write_lines(tmp_path / "documents.jsonl", records)
    manifest = tasks.tokenize_source(
        source_of(path, "contextual"), vocabulary, tmp_path / "table", dataclasses.replace(LENGTHS, query=20)
    )
    table = TokenTable.open(tmp_path / "table", kind="contextual", vocabulary=vocabulary)
    # Nine chunks become three documents of three; the document without queries is gone.
    assert np.diff(table["chunks_of_document"]).tolist() == [3, 3, 3, 3, 4] and manifest["documents"] == 5
    assert manifest["truncated"]["chunks"] > 0
    queries = [query for record in records for query in record["queries"]]
    owners = [record for record in records for _ in record["queries"]]
    assert table.count == len(queries)
    for row, (query, record) in enumerate(zip(queries, owners, strict=True)):
        assert table["query"][row].tolist() == vocabulary.encode(query["text"])
        gold = table["chunks_of_document"][table["document"][row]] + table["chunk"][row]
        assert table["chunks"][gold].tolist() == vocabulary.encode(record["chunks"][query["chunk"]])[:25]
    # Queries of one document share its hash, and those of documents that are equal once cut.
    bounds = table["chunks_of_document"][np.stack([table["document"], table["document"] + 1])]
    texts = [tuple(map(tuple, list(table["chunks"])[first:last])) for first, last in bounds.T]
    pairs = set(zip(texts, table["document_hash"].tolist(), strict=True))
    assert len(pairs) == len(set(texts)) == len(set(table["document_hash"].tolist())) == 4
    assert not len(table["also_positive"].values)


def test_further_chunks_that_answer_a_query_are_known(vocabulary, tmp_path):
    asked = [("first", 0), ("first", 2), ("second", 1), ("third", 3)]
    document = {
        "id": "d",
        "chunks": ["alpha", "beta", "gamma", "alpha"],
        "queries": [{"text": text, "chunk": chunk} for text, chunk in asked],
    }
    # Of a document of other chunks the same question has other answers.
    other = {"id": "e", "chunks": ["delta", "epsilon"], "queries": [{"text": "first", "chunk": 1}]}
    path = write_lines(tmp_path / "documents.jsonl", [document, other])
    tasks.tokenize_source(source_of(path, "contextual"), vocabulary, tmp_path / "table", LENGTHS)
    table = TokenTable.open(tmp_path / "table")
    assert [places.tolist() for places in table["also_positive"]] == [[2, 3], [0, 3], [], [0], []]
    shape = {"sequences": 2, "length": 64, "slots": 16, "chunks": 4}
    arrays, _ = contextual_batch(table, np.array([4, 1]), **shape)
    assert arrays["also_positive"].tolist() == [[False] * 4, [True, False, False, True]]
    unknowing = dataclasses.replace(
        table, features={name: feature for name, feature in table.features.items() if name != "also_positive"}
    )
    both = Gatherer([unknowing, table])(np.array([1, 0]), np.array([1, 1]))
    arrays, _ = contextual_batch(both, np.arange(2), **shape)
    assert arrays["also_positive"].tolist() == [[True, False, False, True], [False] * 4]
    assert not contextual_batch(unknowing, np.array([1]), **shape)[0]["also_positive"].any()


BROKEN = {
    "not JSON": ('{"text": "fine"}\n{"text": \n', ":2: not JSON"),
    "no field": ('{"text": "fine"}\n\n'.replace("\n\n", '\n{"txt": ""}\n'), ":2: no text of type str"),
    "wrong type": ('{"text": 7}\n', ":1: no text of type str"),
    "not an object": ("[1]\n", ":1: not a JSON object"),
    "empty": ('{"text": " "}\n', ":1: empty text"),
    "surrogate": ('{"text": "\\ud800"}\n', ":1: text is not UTF-8"),
    "nothing": ("", "no example is left"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_corpus_names_file_and_line_and_leaves_nothing(vocabulary, tmp_path, kind):
    content, message = BROKEN[kind]
    path = tmp_path / "text.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput) as error:
        tasks.tokenize_source(source_of(path, "text"), vocabulary, tmp_path / "table", LENGTHS)
    assert (
        kind == "nothing"
        or f"{path}" in str(error.value)
        and message in str(error.value)
        and "\n" not in str(error.value)
    )
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]


def test_a_missing_corpus_and_a_query_of_no_chunk(vocabulary, tmp_path):
    with pytest.raises(BadInput, match="missing.jsonl: no such file; check the path"):
        tasks.tokenize_source(source_of(tmp_path / "missing.jsonl", "text"), vocabulary, tmp_path / "table", LENGTHS)
    records = documents_of([3])
    records[0]["queries"][0]["chunk"] = 3
    path = write_lines(tmp_path / "documents.jsonl", records)
    with pytest.raises(BadInput, match="document module0 has 3 chunks, a query wants chunk 3"):
        tasks.tokenize_source(source_of(path, "contextual"), vocabulary, tmp_path / "table", LENGTHS)


def test_training_needs_no_tensorflow(vocabulary, tmp_path):
    """From table to batch in a process where TensorFlow and SeqIO cannot be imported."""
    path = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    tasks.tokenize_source(source_of(path, "text"), vocabulary, tmp_path / "table", LENGTHS)
    program = f"""
import sys
sys.modules["tensorflow"] = sys.modules["seqio"] = sys.modules["jax"] = None
from pplx_jax.data.sources import seqio_tasks as tasks# imported lazily there
from pplx_jax.data.batches.batch_spec import TextBatch
from pplx_jax.data.batches.examples import Examples
from pplx_jax.data.batches.prefetch import Prefetch
import numpy as np
from pplx_jax.data.tokens.token_table import TokenTable
table = TokenTable.open({str(tmp_path / "table")!r}, kind="text")
spec = TextBatch(8, 32)
sequences = spec.sequences_needed(table)
examples = Examples({{"": [table]}}, None, 8, seed=0)
read = lambda position: examples.pack(spec, examples.select(np.arange(position, position + 8)), sequences)
with Prefetch(read, 0, 8) as batches:
    batch, position = next(batches)
print(batch.arrays["tokens"].shape == (sequences, 32), position)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "8"]


def test_a_copied_vocabulary_gives_the_same_table(vocabulary, tmp_path):
    path = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    vocabulary.save(tmp_path / "model")
    copy = load_vocabulary(tmp_path / "model")
    for name, one in (("a", vocabulary), ("b", copy)):
        tasks.tokenize_source(source_of(path, "text"), one, tmp_path / name, LENGTHS)
    for file in ("tokens.values.npy", "tokens.offsets.npy", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
