import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.folder_corpus import FILES, FolderCorpus


def test_files_are_linked_and_never_copied(tmp_path):
    for number, name in enumerate(FILES):
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_text("x" * number)
    corpus = FolderCorpus(str(tmp_path / "given"))
    for _ in range(2):  # a second time replaces the links
        assert corpus.build(tmp_path / "run" / "corpus")["bytes"] == {name: n for n, name in enumerate(FILES)}
    for name in FILES:
        assert (tmp_path / "run" / "corpus" / name).resolve() == (tmp_path / "given" / name).resolve()


def test_all_that_is_missing_is_named_and_nothing_written(tmp_path):
    (tmp_path / "text.jsonl").write_text("")
    with pytest.raises(BadInput) as caught:
        FolderCorpus(str(tmp_path)).build(tmp_path / "corpus")
    assert all(name in str(caught.value) for name in FILES[1:]) and "text.jsonl" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    for name in FILES:
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_text("x")
    thesis = tmp_path / "corpus" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("of hours")
    with pytest.raises(BadInput, match="corpus is in the way and no corpus"):
        FolderCorpus(str(tmp_path / "given")).build(tmp_path / "corpus")
    assert thesis.read_text() == "of hours"


def test_probes_of_the_folder_are_linked_too(tmp_path):
    given = tmp_path / "given"
    for name in (*FILES, "probes/context/corpus.jsonl", "probes/context/queries.jsonl"):
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_text(name)
    FolderCorpus(str(given)).build(tmp_path / "corpus")
    assert (tmp_path / "corpus" / "probes" / "context" / "corpus.jsonl").read_text() == "probes/context/corpus.jsonl"
