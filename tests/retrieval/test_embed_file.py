"""Embedding files: order, bad rows, documents, and a kill -9 in the middle."""

import gzip
import json
import signal
import time
import types

import numpy as np
import pytest
from helpers import job, slow_embedding, tiny
from helpers.word_encoder import WordEncoder

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.parquet import parquet_rows
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def embed(source, output, **options):
    encoder = options.pop("encoder", None) or WordEncoder()
    return embed_file("model", source, output, encoder=encoder, **options)


def read(output):
    folder = EmbeddingFolder.read(output)
    return np.concatenate(list(folder.vectors())), list(folder.described())


def test_texts_keep_their_order(tmp_path):
    texts = [f"word{number} common" for number in range(10)]
    rows = [{"text": text, "path": "a.py", "line": n} for n, text in enumerate(texts)]
    result = embed(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out", shard_size=4)
    assert result == {"count": 10, "shards": 3, "tokens": 20, "seconds": result["seconds"], "skipped": 0}
    vectors, described = read(tmp_path / "out")
    assert vectors.dtype == np.int8
    np.testing.assert_array_equal(vectors, WordEncoder().encode(texts))
    assert [row["text"] for row in described] == texts
    assert described[3] == {"id": "4", "text": texts[3], "row": 4, "path": "a.py", "line": 3}


def test_an_interrupted_call_resumes_in_a_bucket(bucket, tmp_path, monkeypatch):
    texts = [f"word{number} common" for number in range(10)]
    write_rows(bucket / "in.jsonl", [{"text": text} for text in texts])
    add = EmbeddingFolder.add

    def add_one(folder, *shard):
        add(folder, *shard)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(EmbeddingFolder, "add", add_one)
        embed(bucket / "in.jsonl", bucket / "out", shard_size=4)
    assert sorted(path.name for path in (bucket / "out").iterdir()) == [
        "00000.json",
        "00000.jsonl",
        "00000.npy",
        "progress.json",
    ]
    with pytest.raises(BadInput, match="is unfinished"):
        read(bucket / "out")
    encoder = WordEncoder()
    embed(bucket / "in.jsonl", bucket / "out", shard_size=4, encoder=encoder)
    assert encoder.encoded == 6  # not the first shard
    vectors, described = read(bucket / "out")
    np.testing.assert_array_equal(vectors, WordEncoder().encode(texts))
    assert [row["text"] for row in described] == texts


@pytest.mark.parametrize(
    ("quantization", "dtype", "width"),
    [
        ("binary", np.int8, 32),
        ("ubinary", np.uint8, 4),
        ("none", np.float32, 32),
        ("tanh", np.float32, 32),
    ],
)
def test_quantizations(tmp_path, quantization, dtype, width):
    embed(write_rows(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out", quantization=quantization)
    vectors, _ = read(tmp_path / "out")
    assert vectors.dtype == dtype and vectors.shape == (1, width)


def test_documents_are_encoded_as_one(tmp_path):
    rows = [{"id": "doc", "chunks": ["a b", "", "c"]}, {"_id": "lone", "text": "a b"}]
    result = embed(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out", quantization="none", dims=8)
    assert (result["count"], result["tokens"]) == (4, 2 + 0 + 1 + 2 + 2)
    vectors, described = read(tmp_path / "out")
    in_context = WordEncoder().encode_documents([["a b", "", "c"], ["a b"]], quantization="none", dims=8)
    np.testing.assert_array_equal(vectors, np.concatenate(in_context))
    assert [row["id"] for row in described] == ["doc#0", "doc#1", "doc#2", "lone"]
    assert [row.get("empty", False) for row in described] == [False, True, False, False]
    assert described[2] == {"id": "doc#2", "text": "c", "row": 1, "document": "doc", "chunk": 2}


def test_bad_rows_are_named_and_counted(tmp_path, capsys):
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"body": "x"}',
        b'{"text": 5}',
        b"",
        b'{"chunks": []}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "also good"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    result = embed(tmp_path / "in.jsonl", tmp_path / "out", shard_size=3)
    assert (result["count"], result["skipped"], result["shards"]) == (2, 6, 3)
    messages = capsys.readouterr().err
    for expected in (
        "line 2: not JSON",
        'line 3: neither "text" nor "chunks", only body',
        'line 4: "text" is int',
        'line 6: "chunks" is not a list',
        "line 7: not UTF-8",
        'line 8: "text" contains half of a surrogate pair',
    ):
        assert expected in messages
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [row["row"] for shard in manifest["shards"] for row in shard["skipped"]] == [2, 3, 4, 6, 7, 8]
    assert [row["row"] for row in read(tmp_path / "out")[1]] == [1, 9]


def test_long_texts_end_the_call_when_the_others_are_embedded(tmp_path, capsys):
    rows = [{"text": "a"}, {"id": "novel", "text": "long " * 21}, {"text": "b"}, {"chunks": ["long " * 15] * 2}, {}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    for _ in range(2):  # also when there is nothing left to do
        novel = r"the first is 'novel' in line 2 \(21 tokens, the model takes 20\)"
        expected = rf"too long: 2 of 5 rows, {novel}; .* --overflow trunc"
        with pytest.raises(BadInput, match=expected):
            embed(source, tmp_path / "out", shard_size=2)
    assert "line 4: 31 tokens, the model takes 20" in capsys.readouterr().err
    assert [row["row"] for row in read(tmp_path / "out")[1]] == [1, 3]
    assert embed(source, tmp_path / "cut", overflow="truncate")["skipped"] == 1


def test_a_corrected_command_continues_in_the_folder_of_the_failed_one(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": "long " * 21}, {"text": "d"}, {"text": "e"}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(BadInput, match="none of its 6 rows could be embedded"):
        embed(source, tmp_path / "out", text_field="body", shard_size=2)
    with pytest.raises(BadInput, match="too long: 1 of 6 rows"):
        embed(source, tmp_path / "out", shard_size=2)
    encoder = WordEncoder()
    assert embed(source, tmp_path / "out", shard_size=2, overflow="truncate", encoder=encoder)["count"] == 6
    assert encoder.encoded == 2  # the shard of the long text
    embed(source, tmp_path / "once", shard_size=2, overflow="truncate")
    for found, expected in zip(read(tmp_path / "out"), read(tmp_path / "once"), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(BadInput, match="holds embeddings with overflow='truncate', not 'error'"):
        embed(source, tmp_path / "out", shard_size=2)


def test_an_interrupted_correction_continues(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "long " * 21}])
    with pytest.raises(BadInput, match="too long"):
        embed(source, tmp_path / "out", shard_size=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(EmbeddingFolder, "add", stop)
        embed(source, tmp_path / "out", shard_size=1, overflow="truncate")
    encoder = WordEncoder()
    assert embed(source, tmp_path / "out", shard_size=1, overflow="truncate", encoder=encoder)["count"] == 2
    assert encoder.encoded == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_nested_column(tmp_path, ending):
    rows = [{"doc": {"body": {"text": "a b"}}, "id": "x"}, {"doc": {"body": {"text": "c"}}, "id": "y"}]
    source = tmp_path / f"in.{ending}"
    if ending == "jsonl":
        write_rows(source, [*rows, {"doc": {"body": "flat"}}])
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    assert embed(source, tmp_path / "out", text_field="doc.body.text")["count"] == 2
    assert [(row["id"], row["text"]) for row in read(tmp_path / "out")[1]] == [("x", "a b"), ("y", "c")]


class LengthEncoder(WordEncoder):
    """Knows that a word has at most eight characters, and never counts the words of a long text."""

    vocabulary = types.SimpleNamespace(least_tokens=lambda text: len(text) // 8)

    def count_tokens(self, texts):
        assert max(map(len, texts), default=0) < 1000
        return super().count_tokens(texts)


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 8}])
def test_a_far_too_long_text_is_refused_before_it_is_tokenized(tmp_path, options):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "long " * 20_000}])
    with pytest.raises(BadInput, match=r"1 of 2 rows, the first is '2' in line 2 \(at least 12500 tokens, the model"):
        embed(source, tmp_path / "out", encoder=LengthEncoder(), **options)
    assert len(read(tmp_path / "out")[1]) == 1


def test_long_texts_are_cut_on_request(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "long " * 30}])
    result = embed(source, tmp_path / "out", overflow="truncate")
    assert (result["count"], result["tokens"], result["skipped"]) == (1, 20, 0)


def test_a_cut_document_keeps_a_token_of_every_chunk_or_is_named(tmp_path):
    """Ten chunks and nine separators are the most that twenty tokens hold."""
    rows = [{"id": count, "chunks": ["long long"] * count} for count in (10, 11)]
    source = write_rows(tmp_path / "in.jsonl", [*rows, {"id": "empty", "chunks": ["long long"] * 7 + [""] * 6}])
    with pytest.raises(BadInput, match=r"1 of 3 rows, the first is '11' in line 2 \(11 chunks, .* 20 .* for 10; give"):
        embed(source, tmp_path / "out", overflow="truncate")
    assert [row["row"] for row in read(tmp_path / "out")[1]] == [1] * 10 + [3] * 13


def test_long_texts_are_split_on_request(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "long " * 30}, {"chunks": ["a " * 15, "b " * 15]}])
    result = embed(source, tmp_path / "out", overflow="split", overlap=4)
    assert (result["count"], result["tokens"], result["skipped"]) == (3, 30 + 31, 0)
    with pytest.raises(BadInput, match="overlap=4, not 5"):
        embed(source, tmp_path / "out", overflow="split", overlap=5)


def test_texts_are_chunked_on_the_way(tmp_path):
    text = "One two three. Four five six. Seven."
    rows = [{"id": "long", "text": text}, {"id": "none", "text": ""}, {"id": "own", "chunks": ["a b c d e f g"]}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    assert embed(source, tmp_path / "out", chunk_tokens=4, quantization="none")["count"] == 4
    vectors, described = read(tmp_path / "out")
    assert [row["id"] for row in described] == ["long#0", "long#1", "none#0", "own#0"]
    assert "".join(row["text"] for row in described[:2]) == text
    assert [row.get("empty", False) for row in described] == [False, False, True, False]
    chunks = ["One two three. ", "Four five six. Seven."]
    np.testing.assert_array_equal(vectors[:2], WordEncoder().encode_documents([chunks], quantization="none")[0])
    with pytest.raises(BadInput, match="chunk_tokens=0"):
        embed(source, tmp_path / "elsewhere", chunk_tokens=0)


def test_documents_of_parquet_are_those_of_json_lines(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": str(n), "parts": [f"word{n}", "", "common"][: n % 3 + 1]} for n in range(7)]
    embed(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "lines", chunks_field="parts", shard_size=3)
    bad = [{"id": "none", "parts": []}, {"id": "hole", "parts": ["a", None]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows + bad), tmp_path / "in.parquet", row_group_size=2)
    result = embed(tmp_path / "in.parquet", tmp_path / "columns", chunks_field="parts", shard_size=3)
    assert result["skipped"] == 2
    (vectors, described), (expected, expected_rows) = read(tmp_path / "columns"), read(tmp_path / "lines")
    np.testing.assert_array_equal(vectors, expected)
    assert described == expected_rows
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(BadInput, match="broken.parquet: not a Parquet file"):
        embed(tmp_path / "broken.parquet", tmp_path / "elsewhere")


def test_other_columns_of_parquet_are_not_read(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "text": pyarrow.array(["a", "b"]),
        "id": pyarrow.array([10**15, 1], pyarrow.timestamp("s")),  # the year 31,690,708
        "far": pyarrow.array([10**15, None], pyarrow.timestamp("s")),
        "took": pyarrow.array([5, 6], pyarrow.duration("us")),
        "line": pyarrow.array([10**7, 2], pyarrow.date32()),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "in.parquet")
    assert embed(tmp_path / "in.parquet", tmp_path / "out")["count"] == 2
    rows = read(tmp_path / "out")[1]
    assert rows[1]["id"].startswith("1970-01-01 00:00:01") and rows[1]["line"] == "1970-01-03"
    with open(tmp_path / "in.parquet", "rb") as file:
        assert list(next(parquet_rows(file, "in", {"text", "absent"}))) == ["text"]
    with open(tmp_path / "in.parquet", "rb") as file:
        whole = list(parquet_rows(file, "in"))
    assert [row["took"].microseconds for row in whole] == [5, 6] and "far" in whole[0] and "far" not in whole[1]
    with pytest.raises(BadInput, match='neither "body" nor "chunks", only text, id'):
        embed(tmp_path / "in.parquet", tmp_path / "other", text_field="body")


def test_parquet_and_gzip_give_what_json_lines_give(tmp_path):
    rows = [{"id": str(n), "text": f"word{n}"} for n in range(5)]
    embed(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "plain")
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress((tmp_path / "in.jsonl").read_bytes()))
    embed(tmp_path / "in.jsonl.gz", tmp_path / "zipped")
    np.testing.assert_array_equal(read(tmp_path / "zipped")[0], read(tmp_path / "plain")[0])
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([*rows, {"id": "null"}]), tmp_path / "in.parquet")
    assert embed(tmp_path / "in.parquet", tmp_path / "columns")["skipped"] == 1
    np.testing.assert_array_equal(read(tmp_path / "columns")[0], read(tmp_path / "plain")[0])


def test_an_interrupted_file_goes_on_from_its_shards(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{n}"} for n in range(10)])

    class Interrupted(WordEncoder):
        def encode(self, texts, **options):
            if self.encoded >= 6:
                raise KeyboardInterrupt
            return super().encode(texts, **options)

    with pytest.raises(KeyboardInterrupt):
        embed(source, tmp_path / "out", shard_size=3, encoder=Interrupted())
    with pytest.raises(BadInput, match="unfinished"):
        EmbeddingFolder.read(tmp_path / "out")
    rest = WordEncoder()
    result = embed(source, tmp_path / "out", shard_size=3, encoder=rest)
    assert (rest.encoded, result["count"], result["shards"]) == (4, 10, 4)
    again = WordEncoder()
    assert embed(source, tmp_path / "out", shard_size=3, encoder=again) == result
    assert again.encoded == 0


def test_a_folder_that_an_earlier_version_left_unfinished_goes_on(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{n}"} for n in range(10)])
    embed(source, tmp_path / "out", shard_size=3)
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    content["shards"] = content["shards"][:2]  # which listed the finished shards in progress.json
    (tmp_path / "out" / "progress.json").write_text(json.dumps(content))
    (tmp_path / "out" / "manifest.json").unlink()
    rest = WordEncoder()
    assert embed(source, tmp_path / "out", shard_size=3, encoder=rest)["count"] == 10
    assert rest.encoded == 4


def assert_same_embeddings(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in other.iterdir()) == names
    for name in names:
        contents = [(folder / name).read_bytes() for folder in (one, other)]
        if name == "manifest.json":
            contents = [json.loads(content) for content in contents]
            for content in contents:
                content["seconds"] = 0
                content["shards"] = [{**shard, "seconds": 0} for shard in content["shards"]]
        assert contents[0] == contents[1], name


def test_workers_that_do_not_know_each_other_write_what_one_writes(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{n} " * (n % 7)} for n in range(40)])
    embed(source, tmp_path / "one", shard_size=3)
    workers = [WordEncoder() for _ in range(3)]

    def work(index, encoder):
        return embed(source, tmp_path / "three", shard_size=3, encoder=encoder, shard=f"{index}/3")

    first, last = work(0, workers[0]), work(2, workers[2])
    assert first["shards"] + first["missing"] == 14 and last["shards"] > first["shards"]
    with pytest.raises(BadInput, match="unfinished"):
        EmbeddingFolder.read(tmp_path / "three")
    (tmp_path / "three" / ".00013.npy.1.tmp").write_bytes(b"half a shard of a worker that goes on")
    whole = work(1, workers[1])
    assert "missing" not in whole and whole["count"] == 40
    assert (tmp_path / "three" / ".00013.npy.1.tmp").exists()
    assert sum(worker.encoded for worker in workers) == 40
    assert min(worker.encoded for worker in workers) >= 9
    again = WordEncoder()
    assert work(1, again) == whole and again.encoded == 0
    assert embed(source, tmp_path / "three", shard_size=3)["count"] == 40  # alone: it removes what is left of others
    assert_same_embeddings(tmp_path / "one", tmp_path / "three")


def test_anyone_takes_the_share_of_a_lost_worker(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{n}"} for n in range(10)])
    embed(source, tmp_path / "out", shard_size=3, shard="0/2")
    rest = WordEncoder()
    assert embed(source, tmp_path / "out", shard_size=3, encoder=rest)["count"] == 10
    assert 0 < rest.encoded < 10
    embed(source, tmp_path / "one", shard_size=3)
    assert_same_embeddings(tmp_path / "one", tmp_path / "out")


@pytest.mark.parametrize("shard", ["4/4", "1", "1/0", "-1/2", "a/b", "1/2/3"])
def test_a_share_that_does_not_exist_is_refused(tmp_path, shard):
    with pytest.raises(BadInput, match=f"shard {shard}: give I/N with I from 0 to N - 1"):
        embed(write_rows(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_processes_of_a_job_write_what_one_writes(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary, max_length=64)
    save_model(tmp_path / "model", config, vocabulary, initial_params(config, 0), stage="pair")
    rows = [{"id": str(n), "text": f"Read file {n}. " * (n % 9)} for n in range(200)]
    write_rows(tmp_path / "in.jsonl", [*rows, {"id": "none"}])
    words = ["embed", f"--model={tmp_path / 'model'}", f"--input={tmp_path / 'in.jsonl'}", "--shard_size=20"]
    words += ["--chunk_tokens=12", "--overflow=split", "--json"]
    alone = job.start_python(["-m", "pplx_jax", *words, f"--output={tmp_path / 'one'}"])
    together = job.start_verb([*words, f"--output={tmp_path / 'two'}"], count=2, devices=2)
    printed = [json.loads(output.splitlines()[-1]) for output in job.finish([alone, *together])]
    assert all({**found, "seconds": 0} == {**printed[0], "seconds": 0} for found in printed)
    assert (printed[0]["skipped"], printed[0]["shards"]) == (1, 11)
    assert_same_embeddings(tmp_path / "one", tmp_path / "two")


def test_a_folder_of_other_settings_is_left_alone(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    embed(source, tmp_path / "out")
    with pytest.raises(BadInput, match="model_fingerprint='words', not 'other'"):
        embed(source, tmp_path / "out", encoder=WordEncoder(fingerprint="other"))
    with pytest.raises(BadInput, match="quantization='int8', not 'binary'"):
        embed(source, tmp_path / "out", quantization="binary")
    write_rows(source, [{"text": "b"}])
    with pytest.raises(BadInput, match="input_sha256"):
        embed(source, tmp_path / "out")
    with pytest.raises(BadInput, match="cannot read"):
        embed(tmp_path / "nothing.jsonl", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 0}, "dims=0 of a model of 32 dimensions"),
        ({"dims": 33}, "dims=33"),
        ({"dims": 12, "quantization": "ubinary"}, "12 dimensions do not fill whole bytes"),
        ({"quantization": "ubinary", "bit_order": "middle"}, "bit_order='middle'"),
    ],
)
def test_vectors_that_cannot_be_leave_no_folder(tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        embed(write_rows(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_row_to_embed_is_refused(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}] * 3)
    for _ in range(2):  # also when there is nothing left to do
        with pytest.raises(BadInput, match='none of its 3 rows .* line 1: neither "txt" nor "chunks", only text'):
            embed(source, tmp_path / "out", text_field="txt", shard_size=2)


@pytest.mark.parametrize(
    "name", ["00000.npy", "00000.jsonl", "thesis.txt", "manifest.json", "progress.json", ".keep.tmp", ".out.1.tmp"]
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("theirs")
    with pytest.raises(BadInput, match="in the way and no embeddings"):
        embed(write_rows(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out")
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "theirs")]


def test_a_manifest_of_others_keeps_what_lies_beside_it(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("manifest.json", ".keep.tmp", ".00000.npy.1.tmp"):
        (tmp_path / "out" / name).write_text('{"name": "theirs"}')
    with pytest.raises(BadInput, match="in the way and no embeddings"):
        embed(write_rows(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["00001.npy", "00001.jsonl"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty", "short"])
def test_a_shard_that_is_not_whole_any_more_is_named(tmp_path, finished, name, how):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{number}"} for number in range(4)])
    embed(source, tmp_path / "out", shard_size=2)
    if not finished:
        (tmp_path / "out" / "manifest.json").rename(tmp_path / "out" / "progress.json")
    shard = tmp_path / "out" / name
    content = shard.read_bytes()
    shard.unlink()
    if how == "short" and name.endswith("npy"):
        np.save(shard, np.zeros((1, 32), np.int8))
    elif how != "missing":
        kept = {"cut": content[:-3], "empty": b"", "short": content.splitlines(keepends=True)[0]}
        shard.write_bytes(kept[how])
    with pytest.raises(BadInput, match=f"{name}.*; delete the folder and embed again"):
        embed(source, tmp_path / "out", shard_size=2)


def test_a_kill_in_the_first_shard_is_gone_on_from(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])

    class Interrupted(WordEncoder):
        def encode(self, texts, **options):
            (tmp_path / "out" / "00000.npy").write_bytes(b"a shard that progress.json does not list")
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".progress.json.1.tmp").touch()
    with pytest.raises(KeyboardInterrupt):
        embed(source, tmp_path / "out", encoder=Interrupted())
    assert embed(source, tmp_path / "out")["count"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_kill_9_changes_no_byte(tmp_path, suffix):
    tiny.tiny_vocabulary(tmp_path)
    rows = [{"id": str(n), "text": f"Read file {n}. " * (n % 9)} for n in range(200)]
    if suffix == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    else:
        write_rows(tmp_path / "in.jsonl", rows)
    source, cut, whole = tmp_path / f"in.{suffix}", tmp_path / "cut", tmp_path / "whole"
    process = job.start_python(["-m", "helpers.slow_embedding", str(source), str(cut), str(tmp_path), "0.1"])
    deadline = time.monotonic() + 120
    while not (cut / "00003.npy").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "manifest.json").exists()
    (cut / ".00009.npy.1.tmp").write_bytes(b"half a shard")  # as a kill inside a write leaves it
    for output in (cut, whole):
        slow_embedding.embed(source, output, tmp_path)
    assert len(list(whole.iterdir())) == 21
    assert_same_embeddings(whole, cut)


def test_an_odd_row_of_json_lines_is_left_out_or_kept_alone(tmp_path):
    lines = [
        '{"id": null, "_id": null, "text": "a"}',
        '{"id": null, "_id": "own", "text": "a"}',
        '{"id": "\\ud800", "text": "a"}',
        '{"\\ud800": "a"}',
        '{"text": "a", "z": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"text": "a", "source": ["\\ud800", 1], "path": {"\\ud800": null}}',
    ]
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    assert embed(tmp_path / "in.jsonl", tmp_path / "out")["skipped"] == 3
    described = read(tmp_path / "out")[1]
    assert [row["id"] for row in described] == ["1", "own", "6"]
    assert (described[2]["source"], described[2]["path"]) == (["\\ud800", 1], {"\\ud800": None})
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"][0]["skipped"]
    assert [row["reason"] for row in listed] == [
        '"id" contains half of a surrogate pair',
        'neither "text" nor "chunks", only \\ud800',
        "nested too deep",
    ]


def test_an_odd_row_of_parquet_is_left_out_or_kept_alone(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def strings(*texts):
        return pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())

    table = {
        "text": strings(b"a", b"\xff", b"b", b"c"),
        "id": strings(b"first", b"second", b"\xff", b"last"),
        "source": pyarrow.array([0, 1, 2, 3], pyarrow.timestamp("s")),
        "path": pyarrow.array([b"a.py", b"b.py", b"c.py", b"\xff.py"], pyarrow.binary()),
        "unused": strings(b"\xff", b"", b"", b""),
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "in.parquet")
    assert embed(tmp_path / "in.parquet", tmp_path / "out")["skipped"] == 2
    described = read(tmp_path / "out")[1]
    assert [row["id"] for row in described] == ["first", "last"]
    assert [row["path"] for row in described] == ["a.py", "\\xff.py"]
    assert described[1]["source"] == "1970-01-01 00:00:03"
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"][0]["skipped"]
    assert [row["reason"] for row in listed] == ['"text" is not UTF-8', '"id" is not UTF-8']


def test_a_parquet_file_with_a_damaged_page_keeps_its_shards(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    rows = pyarrow.table({"text": [f"word{number}" for number in range(2048)]})
    parquet.write_table(rows, path, row_group_size=1024, use_dictionary=False)
    second = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[second : second + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"in.parquet:1025: cannot be read from here on .* copy the file again"):
        embed(path, tmp_path / "out", shard_size=512)
    assert sorted(path.name for path in (tmp_path / "out").glob("0*.json")) == ["00000.json", "00001.json"]


def test_many_files_are_one_input(bucket, tmp_path):
    texts = [f"word{n} common" for n in range(30)]
    one = write_rows(tmp_path / "one.jsonl", [{"text": text} for text in texts])
    embed(one, tmp_path / "whole", shard_size=4)
    for root in (tmp_path / "parts", bucket / "parts"):
        root.mkdir()
        for place in range(10):  # part-0, part-1, ... are in the order of their names
            write_rows(root / f"part-{place}.jsonl", [{"text": text} for text in texts[3 * place : 3 * place + 3]])
        for number, given in enumerate([root, root / "part-*", str(root / "*.jsonl")]):
            embed(given, tmp_path / root.parent.name / str(number), shard_size=4)
            found, expected = read(tmp_path / root.parent.name / str(number)), read(tmp_path / "whole")
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1] == expected[1]


def test_a_row_of_many_files_is_named_with_its_file(tmp_path, capsys):
    write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
    second = write_rows(tmp_path / "b.jsonl", [{"text": "b"}, {"body": "c"}, {"text": "long " * 40}])
    with pytest.raises(BadInput, match=rf"1 of 4 rows, the first is '4' in line 3 of {second} \("):
        embed(str(tmp_path / "*.jsonl"), tmp_path / "out")
    assert f'skipped {second}, line 2: neither "text" nor "chunks"' in capsys.readouterr().err


def test_a_folder_of_a_given_shard_size_goes_on_without_it(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{n}"} for n in range(10)])
    embed(source, tmp_path / "out", shard_size=3, shard="0/2")
    rest = WordEncoder()
    assert embed(source, tmp_path / "out", encoder=rest)["shards"] == 4 and 0 < rest.encoded < 10
    assert embed(source, tmp_path / "new")["shards"] == 1


def test_a_worker_does_not_download_the_shards_of_others(bucket, bucket_server, tmp_path):
    write_rows(bucket / "in.jsonl", [{"text": f"word{n}"} for n in range(10)])
    embed(bucket / "in.jsonl", bucket / "out", shard_size=3, shard="0/2")
    before = len(bucket_server.requests)
    embed(bucket / "in.jsonl", bucket / "out", shard_size=3, shard="1/2")
    assert not [request for request in bucket_server.requests[before:] if "/download/" in request and ".npy" in request]
    (bucket / "out" / "00001.npy").unlink()
    with pytest.raises(BadInput, match=r"00001\.npy is missing"):
        embed(bucket / "in.jsonl", bucket / "out", shard_size=3)


@pytest.mark.slow
def test_processes_of_a_job_divide_a_share(tmp_path):
    """Two jobs of two processes, one after the other, write what one process writes."""
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary, max_length=64)
    save_model(tmp_path / "model", config, vocabulary, initial_params(config, 0), stage="pair")
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"Read file {n}. " * (n % 5)} for n in range(60)])
    words = ["embed", f"--model={tmp_path / 'model'}", f"--input={source}", "--shard_size=5", "--json"]
    embed_file(tmp_path / "model", source, tmp_path / "one", shard_size=5)
    done = []
    for share in ("0/2", "1/2"):
        processes = job.start_verb([*words, f"--output={tmp_path / 'two'}", f"--shard={share}"], count=2, devices=1)
        done.append(json.loads(job.finish(processes)[0].splitlines()[-1]))
    assert done[0]["missing"] == 12 - done[0]["shards"] == 6 and "missing" not in done[1]
    assert_same_embeddings(tmp_path / "one", tmp_path / "two")
