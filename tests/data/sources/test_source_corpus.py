"""A recipe of declared sources: from files to a trained stage, with a curriculum, and what is mined of it."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from helpers import tiny

from pplx_jax.core.buckets import remove, replace
from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.examples import Examples
from pplx_jax.data.sources.corpus import vocabulary_texts
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import digest_of, open_tables
from pplx_jax.mining.choice import Mining
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.recipes import phases
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Training
from pplx_jax.training.train_stage import train

LENGTHS = Lengths(text=24, query=6, document=12, chunk=6, chunks=3)
EVALUATED = "a passage of the evaluation set that is long enough to be told from all others by its words alone"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("declared")
    tiny.tiny_vocabulary(folder)
    short = [{"query": f"read {n}", "positive": f"file {n}"} for n in range(30)]
    long = [{"query": f"open {n}", "positive": f"the table of vector {n} to write and to close"} for n in range(30)]
    write(folder / "short.jsonl", [*short, {"query": "which", "positive": EVALUATED}])
    write(folder / "long.jsonl", long)
    write(folder / "text.jsonl", [{"text": f"write the index of table {n} to a file"} for n in range(40)])
    sets = folder / "sets" / "one"
    sets.mkdir(parents=True)
    with gzip.open(sets / "corpus.jsonl.gz", "wt") as file:
        file.write(json.dumps({"_id": "d", "text": EVALUATED}) + "\n")
    write(sets / "queries.jsonl", [{"_id": "q", "text": "which"}])
    (sets / "qrels.tsv").write_text("q\td\t1\n")
    return folder


def corpus_of(folder, **fields):
    sources = [Source(name, "pair", str(folder / f"{name}.jsonl")) for name in ("short", "long")]
    sources.append(Source("notes", "text", str(folder / "text.jsonl")))
    return SourceCorpus(sources=sources, evaluation=str(folder / "sets"), **fields)


def test_a_folder_is_built_of_links_and_texts_come_from_every_source(folder, tmp_path):
    corpus = corpus_of(folder)
    assert corpus.build(tmp_path / "corpus") == {"shards": {"short": 1, "long": 1, "notes": 1}}
    assert (tmp_path / "corpus" / "evaluation").resolve() == folder / "sets"
    assert json.loads((tmp_path / "corpus" / "search.jsonl").read_text())["text"] == EVALUATED
    texts = list(vocabulary_texts(corpus, tmp_path))
    assert len(texts) == 31 + 30 + 40 and "read 3" in texts and "open 29" in texts
    assert len(list(vocabulary_texts(corpus, tmp_path, characters=20))) < 15
    with pytest.raises(BadInput, match="no evaluation set"):
        SourceCorpus(sources=corpus.sources, evaluation=str(tmp_path)).build(tmp_path / "other")
    with pytest.raises(BadInput, match="two are called pair short"):
        SourceCorpus(sources=[corpus.sources[0]] * 2, evaluation="x")


def test_tokens_that_cannot_be_read_are_refused_before_any_phase(folder, tmp_path):
    with pytest.raises(BadInput, match="s3://bucket/tokens: no bucket gs://; copy the folder"):
        corpus_of(folder, tokens="s3://bucket/tokens")
    with pytest.raises(BadInput, match=r"nowhere/diffusion/manifest.json: no such file"):
        corpus_of(folder, tokens=str(tmp_path / "nowhere")).build(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.slow
def test_a_stage_trains_by_a_curriculum_of_its_sources(folder, tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    counts = corpus_of(folder, drop_overlap=True).tokenize(tmp_path, vocabulary, tmp_path / "tokens", LENGTHS)
    assert counts["pair"] == {"short": 30, "long": 30} and counts["diffusion"]["notes"] > 0
    whole = corpus_of(folder).tokenize(tmp_path, vocabulary, tmp_path / "whole", LENGTHS)
    assert whole["pair"] == {"short": 31, "long": 30}
    # What is in `tokens` is used as it is.
    linked = corpus_of(folder, tokens=str(tmp_path / "tokens"))
    linked.tokenize(tmp_path, vocabulary, tmp_path / "run" / "tokens", LENGTHS)
    tables = open_tables(tmp_path / "run" / "tokens" / "pair", kind="pair", vocabulary=vocabulary)
    assert list(tables) == ["long", "short"]
    data = Curriculum([Mixture({"short": 1.0}), Mixture({"short": 1.0, "long": 1.0})], [2])
    training = tiny.training("pair", data=data)
    rows = Examples(tables, data, training.stage.batch_size, 0).sequences(training.stage.batch, 1)
    assert rows[0] < rows[1]  # so the step is compiled twice
    train(tmp_path / "pair", training, tiny.tiny_config(vocabulary), tables, vocabulary, mesh=Mesh(), seed=0)
    logged = read_metrics(tmp_path / "pair" / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and 0 <= row["data_wait_share"] <= 1 for row in logged)
    assert all(0.3 < row["fill"] <= 1 for row in logged)


def test_mining_takes_of_each_source_what_the_pair_stage_has_not_read(folder, tmp_path, monkeypatch):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    tokens = tmp_path / "data" / "tokens"
    corpus_of(folder).tokenize(tmp_path, vocabulary, tokens, LENGTHS)
    mined = {}

    def mine(embedder, table, vocabulary, mining, output, *, among):
        mined[output.name] = among.tolist()
        output.mkdir(parents=True)
        return {"queries": len(among)}

    monkeypatch.setattr(phases, "mine_table", mine)
    monkeypatch.setattr(phases.Embedder, "load", lambda folder: None)
    data = Mixture({"short": 0.75, "long": 0.25})
    pair = Training(tiny.STAGES["pair"], tiny.OPTIMIZER, steps=3, data=data)
    mined_of = lambda corpus: phases.mine(tmp_path, corpus, vocabulary, Mining(), "pair", [pair], seed=0)  # noqa: E731
    assert mined_of(corpus_of(folder)).keys() == {"short", "long"}
    examples = Examples(open_tables(tokens / "pair"), data, 8, 0)
    read = [examples.select(step * 8 + np.arange(8)) for step in range(3)]
    for name, count in (("short", 31), ("long", 30)):
        rows = {
            row for one in read for at, row in zip(examples.names(one), one.row.tolist(), strict=True) if at == name
        }
        assert rows and sorted(mined[name]) == sorted(set(range(count)) - rows)
    # Of a run that was killed before it knew that they were mined, they are mined again; declared ones are left alone.
    assert mined_of(corpus_of(folder)).keys() == {"short", "long"}
    declared = dataclasses.replace(corpus_of(folder), sources=[Source("judged", "triplet", "judged.jsonl")])
    assert mined_of(declared).keys() == {"declared"}


def test_runs_that_share_tokens_share_no_triplets(folder, tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    shared = tmp_path / "shared"
    corpus_of(folder).tokenize(tmp_path, vocabulary, shared, LENGTHS)
    corpus = corpus_of(folder, tokens=str(shared))
    for _ in range(2):  # killed before the phase was done, a run links again
        for run in ("one", "two"):
            corpus.tokenize(tmp_path, vocabulary, tmp_path / run, LENGTHS)
    (tmp_path / "one" / "triplet").mkdir()
    assert {path.name for path in shared.iterdir()} == {"pair", "diffusion"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"pair", "diffusion"}
    # A run may hold what `data cache` wrote.
    corpus.tokenize(tmp_path, vocabulary, shared, LENGTHS)
    assert open_tables(shared / "pair", kind="pair", vocabulary=vocabulary).keys() == {"short", "long"}


def test_a_source_that_was_edited_after_tokenisation_is_named(folder, tmp_path):
    corpus = corpus_of(folder)
    before = corpus.file_digests()
    assert before.keys() == {f"files of {name}" for source in corpus.sources for name in source.parts()}
    assert dataclasses.replace(corpus, tokens=str(tmp_path)).file_digests() == {}
    run = phases.Phases(tmp_path, {"tokenize": before})
    run("tokenize", dict)
    run.require_same()
    changed = {**before, next(iter(before)): "0"}
    with pytest.raises(BadInput, match=f"the finished phase tokenize has other settings: {next(iter(before))}"):
        phases.Phases(tmp_path, {"tokenize": changed}).require_same()


def test_tokens_of_other_lengths_are_refused(folder, tmp_path):
    vocabulary, lengths = tiny.tiny_vocabulary(tmp_path), LENGTHS
    corpus_of(folder).tokenize(tmp_path / "corpus", vocabulary, tmp_path / "tokens", lengths)
    cached = dataclasses.replace(corpus_of(folder), tokens=str(tmp_path / "tokens"))
    cached.tokenize(tmp_path / "corpus", vocabulary, tmp_path / "one", lengths)
    with pytest.raises(BadInput, match="was made with Lengths.query=6, this recipe has 7"):
        cached.tokenize(tmp_path / "corpus", vocabulary, tmp_path / "two", dataclasses.replace(lengths, query=7))


def test_tokens_in_a_bucket_are_copied_into_the_run(folder, bucket, tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    corpus_of(folder).tokenize(tmp_path, vocabulary, tmp_path / "made", LENGTHS)
    replace(tmp_path / "made", bucket / "made", last="manifest.json")
    corpus = corpus_of(folder, tokens=str(bucket / "made"))
    corpus.build(tmp_path / "corpus")  # checks them
    for _ in range(2):  # killed before the phase was done, a run copies again
        assert corpus.tokenize(tmp_path, vocabulary, tmp_path / "run", LENGTHS) == {"tokens": str(bucket / "made")}
    assert not any(path.is_symlink() for path in (tmp_path / "run").rglob("*"))
    for kind in ("pair", "diffusion"):
        ours, theirs = (open_tables(tmp_path / name / kind, vocabulary=vocabulary) for name in ("run", "made"))
        assert digest_of(ours) == digest_of(theirs) and len(ours) == len(theirs) > 0
    remove(bucket / "made" / "pair")
    with pytest.raises(BadInput, match="made/pair/manifest.json: no such file"):
        corpus.build(tmp_path / "again")
