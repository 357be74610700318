"""Of a Parquet file, only the columns and fields that are asked for are read."""

import pyarrow
import pyarrow.parquet
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.io.parquet import parquet_rows
from pplx_jax.data.sources.source import Source
from pplx_jax.retrieval.embeddings.input_rows import read_rows

FAR = pyarrow.scalar(9_000_000_000_000, pyarrow.timestamp("s"))  # the year 287165
ROWS = [
    {
        "text": f"text {n}",
        "meta": {"lang": "de", "parts": [f"part {n}"], "at": FAR},
        "at": FAR,
        "vector": ["large"] * 50,
    }
    for n in range(4)
]


def written(folder, rows=ROWS):
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, use_dictionary=False)
    return path


def spoil(path, *leaves):
    """Overwrites the data of some leaves, so that reading them fails."""
    content, group = bytearray(path.read_bytes()), pyarrow.parquet.read_metadata(path).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.startswith(leaves):
            start = column.data_page_offset
            content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def found(path, columns):
    with open(path, "rb") as file:
        return list(parquet_rows(file, str(path), columns))


def test_columns_and_fields_that_are_not_needed_are_not_read(tmp_path):
    path = written(tmp_path)
    spoil(path, "at", "vector", "meta.at")
    assert found(path, ["text", "meta.lang", "meta.parts", "language"]) == [
        {"text": f"text {n}".encode(), "meta": {"lang": b"de", "parts": [f"part {n}".encode()]}} for n in range(4)
    ]
    for columns in (None, ["at"], ["meta"], ["text", "meta.at"], ["nothing", "meta.nothing"]):  # the last reads all
        with pytest.raises(BadInput, match="cannot be read from here on"):
            found(path, columns)


@pytest.mark.parametrize("kind, columns", [("text", {}), ("text", {"text": "meta.parts"}), ("pair", {"query": "text"})])
def test_a_source_reads_its_columns_only(tmp_path, kind, columns):
    path = written(tmp_path, [{**row, "positive": "an answer"} for row in ROWS])
    spoil(path, "at", "vector", "meta.at")
    bad = BadRows("mine", 0.99)
    source = Source("mine", kind, str(path), columns={"language": "meta.lang", **columns}, max_bad_share=0.99)
    examples = list(source.examples(str(path), bad))
    if columns.get("text"):  # a list is no text: every row says so
        assert not examples and bad.count == 4 and bad.reasons == {"no meta.parts of type str": 4}
        return
    assert len(examples) == 4 and {example["language"] for example in examples} == {"de"}


def test_embedding_reads_its_columns_only(tmp_path):
    path = written(tmp_path, [{"id": f"d{n}", **row} for n, row in enumerate(ROWS)])
    spoil(path, "at", "vector", "meta.at", "text")
    rows = list(read_rows([path], "meta.lang", "chunks"))
    assert [(row.id, row.chunks) for _, row in rows] == [(f"d{n}", ["de"]) for n in range(4)]


def test_names_with_dots_and_times_that_python_has_not(tmp_path):
    rows = [{"a.b": "dotted", "a": {"b": "nested", "at": FAR}, "at": FAR}]
    path = written(tmp_path, rows)
    assert found(path, ["a.b"]) == [{"a.b": b"dotted"}]
    (row,) = found(path, None)
    assert row["a"]["b"] == b"nested" and isinstance(row["at"], str) and isinstance(row["a"]["at"], str)
    assert found(path, ["nothing"]) == [row]
