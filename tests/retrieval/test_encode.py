"""Embedding files: order, bad rows, documents, and a kill -9 in the middle."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from word_encoder import WordEncoder

from pplx_jax.errors import BadInput
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.encode import embed_file


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def embed(source, output, **options):
    encoder = options.pop("encoder", None) or WordEncoder()
    return embed_file("model", source, output, encoder=encoder, **options)


def read(output):
    folder = EmbeddingFolder.read(output)
    return np.concatenate(list(folder.vectors())), [json.loads(line) for line in folder.described()]


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
        json.dumps({"text": "long " * 21}).encode(),
        b'{"chunks": []}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "also good"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    result = embed(tmp_path / "in.jsonl", tmp_path / "out", shard_size=3)
    assert (result["count"], result["skipped"], result["shards"]) == (2, 7, 3)
    messages = capsys.readouterr().err
    for expected in (
        "line 2: not JSON",
        'line 3: neither "text" nor "chunks", only body',
        'line 4: "text" is int',
        "line 6: 21 tokens, the model takes 20",
        'line 7: "chunks" is not a list',
        "line 8: not UTF-8",
        'line 9: "text" holds half of a surrogate pair',
    ):
        assert expected in messages
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [row["row"] for shard in manifest["shards"] for row in shard["skipped"]] == [2, 3, 4, 6, 7, 8, 9]
    assert [row["row"] for row in read(tmp_path / "out")[1]] == [1, 10]


def test_long_texts_are_cut_on_request(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "long " * 30}])
    result = embed(source, tmp_path / "out", truncate=True)
    assert (result["count"], result["tokens"], result["skipped"]) == (1, 20, 0)


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


SLOW_EMBEDDING = """
import sys, time
from word_encoder import WordEncoder
from pplx_jax.retrieval.encode import embed_file

class Slow(WordEncoder):
    def encode(self, texts, **options):
        time.sleep(0.02)
        return super().encode(texts, **options)

embed_file("model", sys.argv[1], sys.argv[2], encoder=Slow(), shard_size=2)
"""


def test_kill_9_loses_and_repeats_nothing(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"word{n}"} for n in range(200)])
    tests = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    command = [sys.executable, "-c", SLOW_EMBEDDING, str(source), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "00003.npy").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rest = WordEncoder()
    assert embed(source, tmp_path / "out", encoder=rest, shard_size=2)["count"] == 200
    assert 0 < rest.encoded <= 194
    embed(source, tmp_path / "whole", shard_size=2)
    (vectors, described), (expected, expected_rows) = read(tmp_path / "out"), read(tmp_path / "whole")
    np.testing.assert_array_equal(vectors, expected)
    assert described == expected_rows
