"""Tables by Beam are those of one process, shard by shard; too many bad rows end the work by file and line."""

import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from helpers.tiny import tiny_vocabulary

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources import seqio_tasks as tasks
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.token_table import MANIFEST, TokenTable
from pplx_jax.recipes.data_verbs import cache_corpus

pytestmark = pytest.mark.slow

LENGTHS = Lengths(text=40, query=6, document=12, chunk=6, chunks=2)


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources of every kind in two files each, one row of them bad, and a BEIR folder."""
    folder = tmp_path_factory.mktemp("sources")
    tiny_vocabulary(folder)
    for shard in range(2):
        texts = [f"read file {shard} write index {row} open vector table" for row in range(5)]
        write(folder / f"text-{shard}.jsonl", [{"text": text, "language": "en"} for text in texts] + ["{\n"] * shard)
        pairs = [{"query": text[:10], "positive": text, "negatives": texts[:2]} for text in texts]
        write(folder / f"pair-{shard}.jsonl", pairs)
        documents = [{"document_id": t, "chunks": texts, "queries": [{"text": t, "chunk": 3}]} for t in texts[:2]]
        write(folder / f"contextual-{shard}.jsonl", documents)
    beir = folder / "beir"
    beir.mkdir()
    write(beir / "corpus.jsonl", [{"_id": "d", "text": "close table"}])
    write(beir / "queries.jsonl", [{"_id": "q", "text": "close"}])
    (beir / "qrels.tsv").write_text("q\td\t1\n")
    return folder


def corpus_of(folder, share=0.5, only=("text", "pair", "triplet", "contextual")):
    fields = {"root": str(folder), "max_bad_share": share, "negatives": 2}
    kinds = {"text": "text-*", "pair": "pair-*", "triplet": "pair-*", "contextual": "contextual-*"}
    sources = [Source(name=f"my_{kind}", kind=kind, path=f"{path}.jsonl", **fields) for kind, path in kinds.items()]
    sources = [source for source in sources if source.kind in only]
    return SourceCorpus(sources=sources, evaluation=str(folder / "beir"))


def test_tables_are_those_of_one_process(folder, tmp_path):
    corpus = corpus_of(folder)
    result = cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder, output=str(tmp_path / "out"))
    vocabulary = tiny_vocabulary(folder)
    tasks.tokenize_sources(corpus.sources, vocabulary, tmp_path / "whole", LENGTHS)
    for source in corpus.sources:
        stage = source.table_folder
        (whole,) = open_tables(tmp_path / "whole" / stage)[source.name]
        shards = open_tables(tmp_path / "out" / stage, kind=source.kind, vocabulary=vocabulary)[source.name]
        assert [shard.folder.name for shard in shards] == ["shard-00000-of-00002", "shard-00001-of-00002"]
        assert result[stage][source.name]["examples"] == whole.count == sum(shard.count for shard in shards)
        assert result[stage][source.name]["rows"] == whole.manifest["rows"]
        text = "tokens" if source.kind == "text" else "query"
        found = [tokens.tolist() for shard in shards for tokens in list(shard[text])[: shard.count]]
        assert found == [tokens.tolist() for tokens in list(whole[text])[: whole.count]]
    # Every feature: one shard alone is the table of its file alone.
    alone = Source(name="my_triplet", kind="triplet", path=str(folder / "pair-1.jsonl"), negatives=2)
    tasks.tokenize_source(alone, vocabulary, tmp_path / "alone", LENGTHS)
    one, other = (
        TokenTable.open(path)
        for path in (tmp_path / "alone", tmp_path / "out" / "triplet" / "my_triplet" / "shard-00001-of-00002")
    )
    for name in one.features:
        if hasattr(one[name], "values"):
            assert np.array_equal(one[name].values, other[name].values), name
            assert np.array_equal(one[name].offsets, other[name].offsets), name
        else:
            assert np.array_equal(one[name], other[name]), name


def test_a_url_takes_no_second_run_and_a_shard_without_a_row_has_a_table(folder, tmp_path):
    (tmp_path / "text-2.jsonl").touch()
    for shard in range(2):
        (tmp_path / f"text-{shard}.jsonl").symlink_to(folder / f"text-{shard}.jsonl")
    source = Source("my_text", "text", str(tmp_path / "text-*.jsonl"), max_bad_share=0.5)
    corpus = SourceCorpus([source], str(folder / "beir"))
    url = f"memory://bucket{tmp_path}"
    result = cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder, output=url)
    with pytest.raises(BadInput, match=f"{url}/diffusion exists already; delete it"):
        cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder, output=url)
    fsspec.filesystem("memory").get(f"/bucket{tmp_path}/diffusion", str(tmp_path / "copy"), recursive=True)
    shards = open_tables(tmp_path / "copy", kind="text")["my_text"]
    assert len(shards) == 3 and shards[2].count == 0
    assert sum(shard.count for shard in shards) == result["diffusion"]["my_text"]["examples"]
    shards[2].folder.rename(shards[2].folder.with_name("shard-00002-of-00004"))
    with pytest.raises(BadInput, match="my_text: 3 token tables, of sets of 00003, 00004; delete them"):
        open_tables(tmp_path / "copy")
    shutil.rmtree(shards[2].folder.with_name("shard-00002-of-00004"))
    with pytest.raises(BadInput, match="my_text: 2 token tables, of sets of 00003"):
        open_tables(tmp_path / "copy")


def test_workers_need_neither_the_evaluation_set_nor_the_list_of_files(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "beir", tmp_path / "beir")
    (tmp_path / "text.jsonl").write_text((folder / "text-0.jsonl").read_text() + '{"text": "close table"}\n')
    source = Source("my_text", "text", str(tmp_path / "text.jsonl"))
    corpus = SourceCorpus([source], str(tmp_path / "beir"), drop_overlap=True)
    looked, overlap_of, shards_of = [], SourceCorpus.excluded_texts, Source.shards

    def only_here(corpus):
        overlap = overlap_of(corpus)
        shutil.rmtree(corpus.evaluation)
        return overlap

    with monkeypatch.context() as patched:
        patched.setattr(SourceCorpus, "excluded_texts", only_here)
        patched.setattr(Source, "shards", lambda source: looked.append(source.name) or shards_of(source))
        result = cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder)
    assert result["diffusion"]["my_text"]["rows"]["dropped"] == 1 and looked == ["my_text"]
    assert [path.name for path in (tmp_path / "data" / "tokens").iterdir()] == ["diffusion"]
    # What was left out is known where the tables are used.
    shutil.copytree(folder / "beir", tmp_path / "beir")
    used = dataclasses.replace(corpus, tokens=str(tmp_path / "data" / "tokens"))
    used.build(tmp_path / "run")
    with (tmp_path / "beir" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "later", "text": "open file"}\n')
    with pytest.raises(BadInput, match="shard-00000-of-00001: texts of .*beir were not left out"):
        used.build(tmp_path / "other")
    dataclasses.replace(used, drop_overlap=False).build(tmp_path / "other")


def test_a_damaged_file_is_named_through_beam(folder, tmp_path):
    path = tmp_path / "text.jsonl.gz"
    path.write_bytes(gzip.compress((folder / "text-0.jsonl").read_bytes())[:-20])
    corpus = SourceCorpus([Source("my_text", "text", str(path))], str(folder / "beir"))
    with pytest.raises(BadInput, match=rf"^{path}:\d: cannot be read from here on \(.*\); copy the file again$"):
        cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder)


def test_too_many_bad_rows_name_file_and_line_and_leave_nothing(folder, tmp_path):
    with pytest.raises(BadInput, match=r"text-1.jsonl:6: not JSON") as caught:
        corpus = corpus_of(folder, share=0.0, only=["text"])
        cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "data" / "tokens").exists()


@pytest.mark.parametrize("verb", ["cache_corpus", "tokenize_sources"])
def test_a_bad_source_is_one_line_without_tracebacks(folder, tmp_path, verb):
    program = f"""
import pathlib, sys
import jax  # sets a level of TensorFlow's messages
from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.seqio_tasks import tokenize_sources
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.recipes.data_verbs import cache_corpus
folder, lengths = pathlib.Path({str(folder)!r}), {LENGTHS!r}
corpus = SourceCorpus([Source("my_text", "text", str(folder / "text-1.jsonl"))], str(folder / "beir"))
try:
    if {verb!r} == "cache_corpus":
        cache_corpus(pathlib.Path({str(tmp_path)!r}), corpus=corpus, lengths=lengths, vocabulary=folder)
    else:
        tokenize_sources(corpus.sources, load_vocabulary(folder), pathlib.Path({str(tmp_path)!r}), lengths)
except BadInput as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("\n") == 1 and "text-1.jsonl:6: not JSON" in done.stdout
    assert "Traceback" not in done.stderr and "text-1.jsonl" not in done.stderr


def test_worker_processes_stop_at_the_bad_row_of_one(folder, tmp_path):
    program = f"""
import pathlib
from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.recipes.data_verbs import cache_corpus
if __name__ == "__main__":
    folder, options = pathlib.Path({str(folder)!r}), "--direct_num_workers=2 --direct_running_mode=multi_processing"
    corpus = SourceCorpus([Source("my_text", "text", str(folder / "text-*.jsonl"))], str(folder / "beir"))
    given = dict(corpus=corpus, lengths={LENGTHS!r}, vocabulary=folder, beam_options=options)
    try:
        cache_corpus(pathlib.Path({str(tmp_path)!r}), **given)
    except BadInput as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.count("\n") == 1 and "text-1.jsonl:6: not JSON" in done.stdout
    assert "Traceback" not in done.stderr and not (tmp_path / "data" / "tokens").exists()


def test_the_command(folder, tmp_path, capsys):
    import seqio

    recipe = tmp_path / "recipe.gin"
    recipe.write_text(f"""
run.corpus = @SourceCorpus()
run.lengths = @Lengths()
run.stages = []
SourceCorpus.sources = [@notes/Source()]
SourceCorpus.evaluation = '{folder}/beir'
notes/Source:
    name = 'notes'
    kind = 'text'
    path = '{folder}/text-0.jsonl'
Lengths.text = 40
Lengths.query = 8
Lengths.document = 8
Lengths.chunk = 8
Lengths.chunks = 8
""")
    words = ["data", "cache", f"--gin_file={recipe}", f"--workdir={tmp_path}", f"--vocabulary={folder}", "--json"]
    words += ["--seqio_records"]
    mined, foreign = tmp_path / "data" / "tokens" / "triplet" / MANIFEST, tmp_path / "elsewhere" / "thesis.txt"
    of_hours = '{"format": 0, "stage": "triplet", "features": {}}'
    for file, content in ((mined, of_hours), (foreign, "of hours")):
        file.parent.mkdir(parents=True)
        file.write_text(content)
    for flag, reason in {
        "--runner=NoSuchRunner": "NoSuchRunner",
        "--beam_options=--direct_num_workers=many": "argument --direct_num_workers: invalid int value: 'many'",
        "--beam_options='": "No closing quotation",
    }.items():
        assert cli.main([*words, flag]) == cli.BAD_INPUT
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith(f"pplx-jax: error: {flag}: ") and reason in error
    assert cli.main([*words, "--beam_options=--job_name='a b'", f"--output={foreign.parent}"]) == cli.BAD_INPUT
    assert "elsewhere is in the way and no token table" in capsys.readouterr().err and foreign.exists()
    assert cli.main(words) == cli.DONE
    result = json.loads(capsys.readouterr().out)
    assert result["diffusion"]["notes"]["shards"] == 1 and result["diffusion"]["notes"]["examples"] > 0
    assert TokenTable.open(tmp_path / "data/tokens/diffusion/notes/shard-00000-of-00001").count > 0
    assert mined.read_text() == of_hours  # a stage that this recipe has no sources of
    # SeqIO reads its own cache, with its statistics.
    seqio.add_global_cache_dirs([str(tmp_path / "data" / "tokens" / "seqio")])
    try:
        task = seqio.TaskRegistry.get("pplx_jax.diffusion_notes")
        cached, direct = (
            list(task.get_dataset(split="train", use_cached=use, shuffle=False).as_numpy_iterator())
            for use in (True, False)
        )
        assert sorted(row["tokens"].tolist() for row in cached) == sorted(row["tokens"].tolist() for row in direct)
        assert task.get_cached_stats("train")["tokens_tokens"] == sum(len(row["tokens"]) for row in direct)
    finally:
        seqio.set_global_cache_dirs([])
    assert cli.main(["data", "--help"]) == cli.DONE and "cache" in capsys.readouterr().out
    assert cli.main(["data"]) == cli.BAD_INPUT
