"""Sources of every format give the same examples; bad rows are counted, sampled, skipped, and end the work."""

import gzip
import json
import os
import pathlib

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.file_formats import format_of
from pplx_jax.data.sources.source import Source

PAIRS = [{"query": f"question {n}", "positive": f"answer {n} Ünïcode", "language": "de"} for n in range(5)]
TRIPLETS = [pair | {"negatives": [f"other {n}", f"none {n}"]} for n, pair in enumerate(PAIRS)]
DOCUMENTS = [
    {"document_id": f"d{n}", "chunks": [f"chunk {n} {place}" for place in range(3)], "query": f"q {n}", "positive": 1}
    for n in range(3)
]


def write_jsonl(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "rows.jsonl"), "auto"


def write_gzip(folder, rows):
    with gzip.open(folder / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(folder / "rows.jsonl.gz"), "auto"


def write_bucket(folder, rows):
    import fsspec

    url = f"memory://bucket{folder}/rows-*.jsonl.gz"
    for shard, part in enumerate((rows[:2], rows[2:])):
        with fsspec.open(url.replace("*", str(shard)), "wb") as file:
            file.write(gzip.compress("".join(json.dumps(row) + "\n" for row in part).encode()))
    return url, "auto"


def write_parquet(folder, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return str(folder / "rows.parquet"), "auto"


def tf_example(row):
    import tensorflow as tf

    def feature(value):
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode() for text in values]))

    features = {name: feature(value) for name, value in row.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_tfrecord(folder, rows):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(folder / "rows.tfrecord-00000-of-00001")) as writer:
        for row in rows:
            writer.write(tf_example(row))
    return str(folder / "rows.tfrecord-*"), "auto"


def write_tfds(folder, rows):
    """A dataset folder described after the fact, as tfds does it for files that are already there."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def kind(value):
        if isinstance(value, list):
            return tfds.features.Sequence(tfds.features.Text())
        return tfds.features.Scalar(np.int64) if isinstance(value, int) else tfds.features.Text()

    features = tfds.features.FeaturesDict({name: kind(value) for name, value in rows[0].items()})
    for shard, part in enumerate((rows[:2], rows[2:])):
        with tf.io.TFRecordWriter(str(folder / f"my_data-train.tfrecord-0000{shard}-of-00002")) as writer:
            for row in part:
                writer.write(features.serialize_example(features.encode_example(row)))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[2, len(rows) - 2],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, template=template, dataset_name="my_data", split="train", filetype_suffix="tfrecord"
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[split], filename_template=template
    )
    return str(folder), "tfds"


WRITERS = {
    "jsonl": write_jsonl,
    "gzip": write_gzip,
    "bucket": write_bucket,
    "parquet": write_parquet,
    "tfrecord": write_tfrecord,
    "tfds": write_tfds,
}


def read(source, **options):
    bad = BadRows(source.name, source.max_bad_share)
    found = [example for shard in source.shards() for example in source.examples(shard, bad, **options)]
    return found, bad


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("kind, rows", [("pair", PAIRS), ("triplet", TRIPLETS), ("contextual", DOCUMENTS)])
def test_a_format_gives_its_rows(format, kind, rows, tmp_path):
    path, given = WRITERS[format](tmp_path, rows)
    found, bad = read(Source("mine", kind, path, format=given, negatives=2, language="en"))
    assert bad.summary()["rows"] == len(rows) == len(found) and bad.count == 0
    for row, example in zip(rows, found, strict=True):
        assert example["source"] == "mine" and example["language"] == row.get("language", "en")
        if kind == "contextual":
            assert example["chunks"] == row["chunks"] and example["queries"] == [(row["query"], 1)]
        else:
            assert (example["query"], example["positive"]) == (row["query"], row["positive"])
            assert example.get("negatives") == row.get("negatives")


def test_a_tfds_or_bucket_source_has_shards(tmp_path):
    for writer in (write_tfds, write_bucket):
        path, format = writer(tmp_path, PAIRS)
        assert len(Source("mine", "pair", path, format=format).shards()) == 2


def test_columns_of_other_names_and_within_others(tmp_path):
    rows = [{"translation": {"de": "Katze", "en": "cat"}, "meta": {"lang": "de"}}]
    path, _ = write_jsonl(tmp_path, rows)
    columns = {"query": "translation.de", "positive": "translation.en", "language": "meta.lang"}
    (example,), _ = read(Source("mine", "pair", path, columns=columns))
    assert (example["query"], example["positive"], example["language"]) == ("Katze", "cat", "de")


def test_languages_are_parts_with_files_of_their_own(tmp_path):
    for language in ("deu", "fra"):
        (tmp_path / language).mkdir()
        write_jsonl(tmp_path / language, [{"text": f"in {language}"}])
    source = Source("web", "text", "{language}/*.jsonl", root=str(tmp_path), languages={"deu": 3.0, "fra": 1.0})
    assert list(source.parts()) == ["web.deu", "web.fra"]
    for name, part in source.parts().items():
        (example,), _ = read(part)
        language = name.removeprefix("web.")
        assert (example["text"], example["language"], example["source"]) == (f"in {language}", language, name)


def test_rows_of_a_declared_language_are_of_it_whatever_they_name(tmp_path):
    (tmp_path / "rus_Cyrl.jsonl").write_text('{"text": "a", "language": "rus"}\n{"text": "b"}\n')
    source = Source("web", "text", str(tmp_path / "{language}.jsonl"), languages={"rus_Cyrl": 1.0})
    (part,) = source.parts().values()
    (shard,) = part.shards()
    assert [one["language"] for one in part.examples(shard, BadRows("web"))] == ["rus_Cyrl"] * 2


def test_a_beir_folder_gives_texts_pairs_and_documents(tmp_path):
    passages = [{"_id": f"p{n}", "text": f"passage {n}", "parent": f"d{n // 2}", "chunk": 1 - n % 2} for n in range(4)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "which"}\n')
    (tmp_path / "qrels.tsv").write_text("q\tp2\t1\n")
    found = {kind: read(Source("set", kind, str(tmp_path), format="beir"))[0] for kind in ("text", "pair")}
    assert [example["text"] for example in found["text"]] == ["passage 1", "passage 0", "passage 3", "passage 2"]
    assert [(example["query"], example["positive"]) for example in found["pair"]] == [("which", "passage 2")]
    documents, _ = read(Source("set", "contextual", str(tmp_path), format="beir"), max_chunks=9)
    assert [(one["chunks"], one["queries"]) for one in documents] == [(["passage 3", "passage 2"], [("which", 1)])]


BAD = {
    "not JSON": b'{"query": \n',
    "not UTF-8": b'{"query": "\xff", "positive": "b"}\n',
    "not a JSON object": b"[1]\n",
    "no query of type str": b'{"query": 7, "positive": "b"}\n',
    "empty positive": b'{"query": "a", "positive": " \\n"}\n',
    "query is over-long": json.dumps({"query": "a" * 60, "positive": "b"}).encode() + b"\n",
    "query is not UTF-8": b'{"query": "\\ud800", "positive": "b"}\n',
    "language is not UTF-8": b'{"query": "a", "positive": "b", "language": "\\ud800"}\n',
    "source is not UTF-8": b'{"query": "a", "positive": "b", "source": "\\ud800"}\n',
    "nested too deep": b'{"query": "a", "z": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_skipped_and_counted_or_ends_the_work(reason, tmp_path):
    good = [json.dumps(pair).encode() + b"\n" for pair in PAIRS]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join([*good[:2], BAD[reason], *good[2:]]))
    source = Source("mine", "pair", str(path), max_characters=50, max_bad_share=0.2)
    found, bad = read(source)
    bad.finish()
    assert [example["query"] for example in found] == [pair["query"] for pair in PAIRS]
    assert bad.summary() == {
        "rows": 6, "bad": 1, "dropped": 0, "reasons": {reason: 1}, "samples": {reason: [f"{path}:3"]},
    }  # fmt: skip
    with pytest.raises(BadInput, match=f"{path}:3: {reason}.*fix the rows, or raise max_bad_share"):
        read(Source("mine", "pair", str(path), max_characters=50))


def test_bytes_that_are_not_utf8_spoil_one_row_of_a_parquet_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts, notes = (
        pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
        for values in ([b"fine", b"\xff\xfe", b"too"], [b"\xff"] * 3)
    )
    table = {"text": texts, "meta": pyarrow.StructArray.from_arrays([notes], names=["note"])}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    found, bad = read(Source("mine", "text", str(tmp_path / "rows.parquet"), max_bad_share=0.5))
    assert [example["text"] for example in found] == ["fine", "too"]
    assert bad.samples == {"text is not UTF-8": [f"{tmp_path}/rows.parquet:2"]}


def cut_short(folder):
    path = folder / "rows.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in PAIRS).encode(), 0)
    path.write_bytes(whole[: len(whole) // 2])
    return path, 2


def not_gzip(folder):
    path = folder / "rows.jsonl.gz"
    path.write_text(json.dumps(PAIRS[0]) + "\n")
    return path, 0


def not_deflate(folder):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"")[:10] + b"\xff" * 90)
    return path, 0


def rotten_parquet(folder):
    import pyarrow
    import pyarrow.parquet

    path = folder / "rows.parquet"
    rows = [{**PAIRS[0], "positive": f"answer {n} " * 50} for n in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1500, use_dictionary=False)
    second = pyarrow.parquet.read_metadata(path).row_group(1).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[second : second + 400] = b"\xff" * 400
    path.write_bytes(content)
    return path, 1500


def rotten_tfds(folder):
    path = write_tfds(folder, PAIRS)[0]
    (_, shard) = sorted(pathlib.Path(path).glob("*.tfrecord*"))
    content = bytearray(shard.read_bytes())
    content[-8:] = b"\xff" * 8
    shard.write_bytes(content)
    return path, "train[1shard]", len(PAIRS) - 3


@pytest.mark.slow
def test_a_damaged_tfds_folder_is_named_with_its_row(tmp_path):
    path, shard, whole = rotten_tfds(tmp_path)
    bad = BadRows("damaged")
    with pytest.raises(
        BadInput, match=r"train\[1shard\]:\d+: cannot be read from here on .*; prepare it again"
    ) as caught:
        list(Source("damaged", "pair", path, format="tfds").examples(shard, bad))
    assert "\n" not in str(caught.value) and bad.rows <= whole


@pytest.mark.parametrize("damage", [cut_short, not_gzip, not_deflate, rotten_parquet])
def test_a_damaged_file_is_named_with_its_line(damage, tmp_path):
    path, whole = damage(tmp_path)
    bad = BadRows("damaged")
    source = Source("damaged", "pair", str(path), max_bad_share=0.9)
    with pytest.raises(BadInput, match=rf"^{path}:\d+: cannot be read from here on \(.+\); copy") as caught:
        for _ in source.examples(str(path), bad):
            pass
    assert "\n" not in str(caught.value) and bad.rows <= whole
    assert int(str(caught.value).removeprefix(f"{path}:").partition(":")[0]) == bad.rows + 1


def test_a_share_is_judged_over_many_rows_and_names_how_many(tmp_path):
    rows = ['{"text": "fine"}\n'] * 990 + ["{\n"] * 10 + ['{"text": "fine"}\n'] * 4000
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    found, bad = read(Source("mine", "text", str(tmp_path / "rows.jsonl"), max_bad_share=0.01))
    bad.finish()
    assert len(found) == 4990 and bad.count == 10
    with pytest.raises(BadInput, match="rows.jsonl:1000: not JSON .* 10 of 1000 rows of mine are bad, more than 0.009"):
        read(Source("mine", "text", str(tmp_path / "rows.jsonl"), max_bad_share=0.009))


def test_texts_of_the_evaluation_are_dropped_and_counted(tmp_path):
    path, _ = write_jsonl(tmp_path, PAIRS)
    found, bad = read(Source("mine", "pair", path), drop=lambda text: "3" in text)
    assert [example["query"] for example in found] == [f"question {n}" for n in (0, 1, 2, 4)] and bad.dropped == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "a b"}, "give a name without slashes and spaces"),
        ({"kind": "pairs"}, "one of text, pair, triplet, contextual"),
        ({"languages": {"de": 1.0}}, "where the path says {language}"),
        ({"max_bad_share": 1.0}, "a share from 0 to below 1"),
    ],
)
def test_what_a_source_cannot_be(fields, message):
    with pytest.raises(BadInput, match=message):
        Source(**{"name": "mine", "kind": "pair", "path": "x.jsonl", **fields})


def test_missing_files_and_unknown_formats(tmp_path):
    with pytest.raises(BadInput, match="no such file; check the path"):
        Source("mine", "pair", str(tmp_path / "*.jsonl")).shards()
    with pytest.raises(BadInput, match="no such file"):
        Source("mine", "pair", "memory://nowhere/x.jsonl").shards()
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(BadInput, match="does not end in .jsonl"):
        read(Source("mine", "pair", str(tmp_path / "rows.csv")))


def test_the_digest_of_a_source_changes_with_its_files(tmp_path):
    rows = [json.dumps({"text": f"{number:04d} " + "word " * 20}) for number in range(3000)]
    path = tmp_path / "rows-0.jsonl"

    def digest(**fields):
        return Source("rows", "text", str(tmp_path / "rows-*.jsonl"), **fields).digest()

    assert digest() is None
    path.write_text("\n".join(rows))
    first = digest()
    assert first == digest()
    os.utime(path, (0, 0))
    assert digest() == first
    for place in (0, 1500, 2999):
        changed = [*rows]
        changed[place] = changed[place].replace("word", "work")
        path.write_text("\n".join(changed))
        assert digest() not in (first, None)
    path.write_text("\n".join(rows))
    assert digest() == first
    (tmp_path / "rows-1.jsonl").write_text(rows[0])
    assert digest() != first


def test_a_blank_line_is_no_row(tmp_path):
    for name in ("rows.jsonl", "rows.ndjson"):
        (tmp_path / name).write_text('\n{"text": "a"}\n  \n{"text": "b"}\n\n')
        assert format_of(name) == "jsonl"
    source = Source("rows", "text", str(tmp_path / "rows.jsonl"))
    bad = BadRows("rows")
    assert [example["text"] for shard in source.shards() for example in source.examples(shard, bad)] == ["a", "b"]
    with pytest.raises(BadInput, match="rows.jsonl:5: .*not JSON"):
        (tmp_path / "rows.jsonl").write_text('\n{"text": "a"}\n  \n\nno\n')
        list(source.examples(source.shards()[0], BadRows("rows")))
