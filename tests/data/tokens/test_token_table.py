"""Token tables: what is written is read back, memory-mapped, and every kind of damage is named."""

import json
import shutil
import types

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.table_maker import table_maker
from pplx_jax.data.tokens.token_table import TokenTable, require_free_of_others
from pplx_jax.data.tokens.token_writer import TokenWriter, write_table

VOCABULARY = types.SimpleNamespace(
    fingerprint="ab" * 32, size=50, pad_id=0, mask_id=2, separator_id=3, path="stub.model"
)
PAIRS = {
    "query": Ragged.from_arrays([[5, 6], [7]]),
    "document": Ragged.from_arrays([[8], [9, 10, 11]]),
    "document_hash": np.array([-1, 2], np.int32),
    "source": np.array([0, 0], np.int32),
}


@pytest.fixture
def folder(tmp_path):
    write_table(tmp_path / "pair", "pair", VOCABULARY, PAIRS, notes={"sources": ["a"]})
    return tmp_path / "pair"


def test_round_trip_is_exact_and_memory_mapped(folder):
    table = TokenTable.open(folder, kind="pair", vocabulary=VOCABULARY)
    assert (table.count, table.kind, table.pad_id, table.separator_id) == (2, "pair", 0, 3)
    assert table.manifest["sources"] == ["a"]
    for name in ("query", "document"):
        assert [text.tolist() for text in table[name]] == [text.tolist() for text in PAIRS[name]]
        assert table[name].values.dtype == np.int32
        assert not table[name].values.flags.owndata
    np.testing.assert_array_equal(table["document_hash"], [-1, 2])
    with pytest.raises(ValueError, match="read-only"):
        table["source"][0] = 1
    assert not list(folder.parent.glob("*.partial")) and not list(folder.parent.glob(".*"))


def test_files_are_what_the_format_says(folder):
    assert np.load(folder / "document.values.npy").tolist() == [8, 9, 10, 11]
    offsets = np.load(folder / "document.offsets.npy")
    assert offsets.dtype == np.int64 and offsets.tolist() == [0, 1, 4]
    assert np.load(folder / "source.npy").tolist() == [0, 0]


def test_blocks_equal_one_write(tmp_path):
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 50, length) for length in generator.integers(0, 9, 300)]
    write_table(tmp_path / "whole", "text", VOCABULARY, {"tokens": Ragged.from_arrays(texts)})
    with TokenWriter(tmp_path / "blocks", "text", VOCABULARY) as writer:
        for start in range(0, 300, 7):
            writer.append(tokens=Ragged.from_arrays(texts[start : start + 7]))
    for file in ("tokens.values.npy", "tokens.offsets.npy", "manifest.json"):
        assert (tmp_path / "blocks" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_digest_is_of_the_content(tmp_path):
    def digest(name, **columns):
        write_table(tmp_path / name, "pair", VOCABULARY, {**PAIRS, **columns}, notes={"sources": [name]})
        return TokenTable.open(tmp_path / name).digest

    same = digest("a")
    assert digest("b") == same
    assert digest("c", source=np.array([0, 1], np.int32)) != same
    assert digest("d", document=Ragged.from_arrays([[8, 9], [10, 11]])) != same
    assert digest("e", query=Ragged.from_arrays([[5, 6], [8]])) != same
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    del manifest["digest"]  # as earlier versions wrote it
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    assert len(TokenTable.open(tmp_path / "a").digest) == 32


@pytest.mark.parametrize("kind", ["text", "pair", "triplet", "contextual"])
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_shard_without_a_good_row_is_an_empty_table(tmp_path, kind, blocks):
    none = Ragged.from_arrays([])
    texts = dict.fromkeys(("tokens", "query", "document", "negatives", "chunks"), none)
    labels = {name: np.array([], str) for name in ("language", "source")}
    numbers = {name: np.zeros(0, np.int32) for name in ("chunk_counts", "chunk")}
    block = {**texts, **labels, **numbers, **({"document": numbers["chunk"]} if kind == "contextual" else {})}
    with table_maker(tmp_path / kind, kind, VOCABULARY, Lengths(24, 6, 12, 6, 3), allow_empty=True) as maker:
        for _ in range(blocks):
            maker.add(block)
    assert TokenTable.open(tmp_path / kind, kind=kind).count == 0


def test_part_of_a_ragged_can_be_written(tmp_path):
    whole = Ragged.from_arrays([[1, 2], [3], [4, 5, 6]])
    part = Ragged(whole.values, whole.offsets[1:])
    write_table(tmp_path / "part", "text", VOCABULARY, {"tokens": part})
    assert [text.tolist() for text in TokenTable.open(tmp_path / "part")["tokens"]] == [[3], [4, 5, 6]]


def test_ragged_indexing():
    ragged = Ragged.from_arrays([[1, 2], [], [3]])
    assert len(ragged) == 3 and ragged.lengths().tolist() == [2, 0, 1]
    assert ragged[-1].tolist() == [3] and ragged[1].tolist() == []
    with pytest.raises(IndexError):
        ragged[3]
    assert len(Ragged.from_arrays([])) == 0


def test_a_failed_write_leaves_nothing_and_keeps_the_old_table(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(RuntimeError, match="halfway"), TokenWriter(folder, "pair", VOCABULARY) as writer:
        writer.append(**PAIRS)
        raise RuntimeError("halfway")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["pair"]
    with (
        pytest.raises(ValueError, match="different lengths"),
        TokenWriter(folder, "pair", VOCABULARY) as writer,
    ):
        writer.append(**PAIRS)
        writer.append(source=np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="missing.*negatives"):
        write_table(folder, "triplet", VOCABULARY, PAIRS)
    assert TokenTable.open(folder).count == 2


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    thesis = tmp_path / "pair" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("of hours")
    for place in (thesis.parent, thesis):
        with pytest.raises(BadInput, match="is in the way and no token table"):
            write_table(place, "pair", VOCABULARY, PAIRS)
    (thesis.parent / "manifest.json").write_text('{"name": "of a browser"}')
    with pytest.raises(BadInput, match="is in the way and no token table"):
        write_table(thesis.parent, "pair", VOCABULARY, PAIRS)
    # What a run that was cut off left is nobody's.
    killed = tmp_path / "tokens" / "pair" / "notes.partial"
    killed.mkdir(parents=True)
    (killed / "query.values.npy").touch()
    require_free_of_others(tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens")
    assert thesis.read_text() == "of hours" and [path.name for path in tmp_path.iterdir()] == ["pair"]


def test_a_new_table_replaces_the_old_one_and_remains_of_a_killed_write(folder):
    partial = folder.with_name("pair.partial")
    partial.mkdir()
    (partial / "negatives.npy").write_bytes(b"left over")
    old = TokenTable.open(folder)
    write_table(folder, "pair", VOCABULARY, {**PAIRS, "source": np.array([4, 5], np.int32)})
    assert TokenTable.open(folder)["source"].tolist() == [4, 5]
    assert not (folder / "negatives.npy").exists()
    assert old["source"].tolist() == [0, 0]  # a reader that was open keeps what it mapped


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


DAMAGE = {
    "missing values": (lambda folder: (folder / "query.values.npy").unlink(), "query.values.npy"),
    "short values": (lambda folder: truncate(folder / "query.values.npy"), "query.values.npy"),
    "empty file": (lambda folder: (folder / "source.npy").write_bytes(b""), "source.npy"),
    "not numpy": (lambda folder: (folder / "source.npy").write_bytes(b"x" * 500), "source.npy"),
    "wrong shape": (lambda folder: np.save(folder / "source.npy", np.zeros(3, np.int32)), "source.npy"),
    "wrong type": (lambda folder: np.save(folder / "source.npy", np.zeros(2)), "source.npy"),
    "offsets out of order": (
        lambda folder: np.save(folder / "document.offsets.npy", np.array([0, 5, 4])),
        "document.offsets.npy",
    ),
    "offsets short of the values": (
        lambda folder: np.save(folder / "document.offsets.npy", np.array([0, 1, 3])),
        "document.offsets.npy",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "broken manifest": (lambda folder: truncate(folder / "manifest.json"), "manifest.json"),
    "a feature outside the folder": (
        lambda folder: edit_manifest(folder, features={"../x": {"kind": "flat", "dtype": "int32", "shape": [2]}}),
        "manifest.json",
    ),
    "other format": (lambda folder: edit_manifest(folder, format=99), "manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_names_the_file_and_the_fix(folder, damage):
    harm, file = DAMAGE[damage]
    TokenTable.open(folder, kind="pair", vocabulary=VOCABULARY).verify()  # control: no damage yet
    harm(folder)
    with pytest.raises(BadInput, match="tokenise the corpus again") as error:
        TokenTable.open(folder).verify()
    assert str(folder / file) in str(error.value) and "\n" not in str(error.value)


def test_another_vocabulary_or_kind_is_refused(folder):
    other = types.SimpleNamespace(**{**vars(VOCABULARY), "fingerprint": "cd" * 32})
    with pytest.raises(BadInput, match="vocabulary abababababab.*cdcdcdcdcdcd"):
        TokenTable.open(folder, vocabulary=other)
    with pytest.raises(BadInput, match="without negatives, which kind triplet has"):
        TokenTable.open(folder, kind="triplet")
