"""Duplicates are left out of token tables, the first one is kept, and what is left is what clean files give."""

import collections
import dataclasses
import gzip
import json

import numpy as np
import pytest
from helpers.tiny import tiny_vocabulary

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import duplicates
from pplx_jax.data.sources.duplicates import EXACT, KEPT, NEAR, Finder, find_duplicates, marks_of
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import digest_of, open_tables
from pplx_jax.recipes.data_verbs import cache_corpus

LENGTHS = Lengths(text=40, query=6, document=12, chunk=6, chunks=2)
WORDS = [f"word{number}" for number in range(2000)]


def find(folder, examples, near=True):
    finder = Finder(folder, near=near)
    for marks in marks_of(examples, near=near):
        finder.add(marks)
    return finder.find().tolist()


def text_of(generator, count=120):
    return [str(word) for word in generator.choice(WORDS, count)]


def runs_of(text):
    words = text.split()
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def test_exact_duplicates_differ_in_white_space_alone(tmp_path):
    texts = ["read the file", "read  the\n file ", "Read the file", "read the file", "the file read"]
    found = find(tmp_path / "a", [{"text": text} for text in texts], near=False)
    assert found == [KEPT, EXACT, KEPT, EXACT, KEPT]
    # Case and punctuation make no other words.
    assert find(tmp_path / "b", [{"text": text} for text in texts]) == [KEPT, EXACT, NEAR, EXACT, KEPT]
    # A document is a duplicate with the same queries of the same chunks alone.
    documents = [{"chunks": ["a", "b"], "queries": [("q", chunk)]} for chunk in (0, 1, 0)]
    assert find(tmp_path / "c", documents, near=False) == [KEPT, KEPT, EXACT]
    # Texts without words are compared as they are.
    assert find(tmp_path / "d", [{"text": text} for text in ("!!", "??", "!!")]) == [KEPT, KEPT, EXACT]


def test_near_duplicates_share_most_runs_of_words(tmp_path):
    generator = np.random.default_rng(0)
    texts = [text_of(generator) for _ in range(200)]
    examples, wanted = [{"text": " ".join(text)} for text in texts], [KEPT] * 200
    for number in range(0, 200, 10):  # one word in 120 changed: 5 of 116 runs; half of the words changed: another text
        near, far = list(texts[number]), list(texts[number])
        near[60] = "changed"
        far[:60] = generator.choice(WORDS, 60).tolist()
        examples += [{"text": " ".join(near)}, {"text": " ".join(far)}]
        wanted += [NEAR, KEPT]
    assert find(tmp_path / "found", examples) == wanted


def test_every_text_that_is_left_out_has_one_that_is_kept(tmp_path):
    """Chains: each text is near the one before it, and the ends are far apart."""
    generator = np.random.default_rng(1)
    examples = []
    for _ in range(30):
        text = text_of(generator, 60)
        for _ in range(12):
            text = list(text)
            text[int(generator.integers(60))] = str(generator.choice(WORDS))
            examples.append({"text": " ".join(text)})
    order = generator.permutation(len(examples))
    examples = [examples[place] for place in order]
    found = find(tmp_path / "found", examples)
    runs = [runs_of(example["text"]) for example in examples]
    missed = 0
    for later, why in enumerate(found):
        shares = [len(runs[later] & runs[e]) / len(runs[later] | runs[e]) for e in range(later) if found[e] == KEPT]
        best = max(shares, default=0.0)
        assert why != NEAR or best > 0.6  # an estimate by 64 hashes is within 0.2 of the share
        missed += why == KEPT and best > 0.9
    assert collections.Counter(found)[NEAR] > 60 and missed <= 3


def test_the_same_document_of_another_query_is_no_duplicate(tmp_path):
    text = text_of(np.random.default_rng(2))
    near = " ".join([*text[:-1], "changed"])
    pairs = [("which one", text), ("which other", text), ("Which one?", near), ("which one", text[60:])]
    examples = [{"query": q, "positive": d if isinstance(d, str) else " ".join(d)} for q, d in pairs]
    assert find(tmp_path / "found", examples) == [KEPT, KEPT, NEAR, KEPT]


def test_the_size_of_groups_changes_nothing_and_the_hashes_are_fixed(tmp_path, monkeypatch):
    generator = np.random.default_rng(3)
    texts = [text_of(generator, int(generator.integers(1, 90))) for _ in range(60)]
    texts += [[*text, "more"] for text in texts]
    examples = [{"text": " ".join(text)} for text in texts]
    whole = find(tmp_path / "whole", examples)
    for name, size in {"_EXAMPLES": 7, "_RUNS_AT_ONCE": 5, "_PAIRS_AT_ONCE": 11}.items():
        monkeypatch.setattr(duplicates, name, size)
    assert find(tmp_path / "parts", examples) == whole and whole.count(NEAR) > 20
    (marks,) = marks_of([{"query": "Which one?", "positive": "the first of the two, and no other one"}], near=True)
    assert marks.digests.tolist() == [15282822560687089247]
    assert marks.signatures[0, :3].tolist() == [814544013, 910666875, 1480042259]


def shards(folder, **rows):
    folder.mkdir()
    for name, lines in rows.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in lines)


def corpus_of(folder, **fields):
    names = {"web": "text", "books": "text", "asked": "pair", "documents": "contextual"}
    sources = [Source(name, kind, str(folder / f"{name}-*.jsonl.gz")) for name, kind in names.items()]
    return SourceCorpus(sources, str(folder.parent / "beir"), **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gzipped shards with duplicates within and across shards and sources, and the same ones without."""
    folder = tmp_path_factory.mktemp("duplicates")
    tiny_vocabulary(folder)
    generator = np.random.default_rng(4)
    one, other, third, fourth, evaluated = (" ".join(text_of(generator, 60)) for _ in range(5))
    near = one.replace(one.split()[30], "changed")
    pair = lambda query, text: {"query": query, "positive": text}  # noqa: E731
    long = {"document_id": "d", "chunks": [one, other, third], "queries": [{"text": "which", "chunk": 2}]}
    again = {**long, "chunks": [near, other, third]}
    rows = {
        "web-0": [{"text": text} for text in (one, evaluated, other, " " + one)],
        "web-1": [{"text": text} for text in (near, third, evaluated + " more")],
        "books-0": [{"text": text} for text in (other, fourth, near)],
        "asked-0": [pair("which", one), pair("what", one), pair("which", near)],
        "documents-0": [long, again, {**long, "queries": [{"text": "who", "chunk": 0}]}],
    }
    clean = {
        "web-0": rows["web-0"][:3],
        "web-1": rows["web-1"][1:],
        "books-0": rows["books-0"][1:2],
        "asked-0": rows["asked-0"][:2],
        "documents-0": [long, rows["documents-0"][2]],
    }
    shards(folder / "rows", **rows)
    shards(folder / "clean", **clean)
    beir = folder / "beir"
    beir.mkdir()
    (beir / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": evaluated}) + "\n")
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "close"}\n')
    (beir / "qrels.tsv").write_text("q\td\t1\n")
    return folder


def test_the_first_one_in_source_order_is_kept(folder):
    corpus = corpus_of(folder / "rows", drop_overlap=True)
    drop = corpus.excluded_texts().of

    def found(sources, mode="near", drop=drop):
        parts = find_duplicates(sources, mode, drop)
        return {shard.rpartition("/")[2][:-9]: marks.tolist() for (_, shard), marks in parts.items()}

    web, books, asked, documents = corpus.sources
    assert found(corpus.sources) == {
        "web-0": [KEPT, KEPT, EXACT],  # what overlaps is not compared
        "web-1": [NEAR, KEPT],
        "books-0": [EXACT, KEPT, EXACT],
        "asked-0": [KEPT, KEPT, NEAR],
        "documents-0": [KEPT, NEAR, KEPT],
    }
    assert found([books, web], "exact") == {
        "books-0": [KEPT] * 3,
        "web-0": [KEPT, EXACT, EXACT],
        "web-1": [EXACT, KEPT],
    }
    assert found([web], drop=None)["web-1"] == [NEAR, KEPT, NEAR]


def test_a_file_that_changes_while_it_is_read_is_refused(folder):
    source = corpus_of(folder / "rows").sources[0]
    with pytest.raises(BadInput, match="web-0.jsonl.gz has changed while it was read; run the command again"):
        list(source.examples(source.shards()[0], BadRows("web"), repeated=np.zeros(2, np.uint8)))
    with pytest.raises(BadInput, match="SourceCorpus.drop_duplicates='all': set it to 'exact', 'near'"):
        corpus_of(folder, drop_duplicates="all")


@pytest.mark.slow
def test_tables_without_duplicates_are_those_of_clean_files(folder, tmp_path):
    vocabulary = tiny_vocabulary(tmp_path)

    def tables(name, output, **fields):
        corpus = corpus_of(folder / name, drop_overlap=True, **fields)
        corpus.tokenize(tmp_path, vocabulary, tmp_path / output, LENGTHS)
        return {kind: open_tables(tmp_path / output / kind) for kind in ("diffusion", "pair", "contextual")}

    left_out, clean = tables("rows", "near", drop_duplicates="near"), tables("clean", "clean")
    whole = tables("rows", "whole")
    for kind in clean:
        assert digest_of(left_out[kind]) == digest_of(clean[kind]) != digest_of(whole[kind])
    manifest = left_out["diffusion"]["web"][0].manifest
    assert manifest["duplicates"] == "near" and manifest["rows"]["duplicates"] == {"exact": 1, "near": 1}
    assert manifest["rows"]["rows"] == 7 and manifest["rows"]["dropped"] == 2
    assert not {"duplicates"} & (
        whole["diffusion"]["web"][0].manifest.keys() | whole["pair"]["asked"][0].manifest["rows"]
    )
    # Beam's workers leave out the same, shard by shard, and leave no other files.
    corpus = corpus_of(folder / "rows", drop_overlap=True, drop_duplicates="near")
    result = cache_corpus(tmp_path, corpus=corpus, lengths=LENGTHS, vocabulary=folder, output=str(tmp_path / "cached"))
    assert result["diffusion"]["web"]["rows"] == manifest["rows"]
    assert sorted(path.name for path in (tmp_path / "cached").iterdir()) == ["contextual", "diffusion", "pair"]
    (cached,), (ours,) = open_tables(tmp_path / "cached" / "pair")["asked"], left_out["pair"]["asked"]
    assert cached.digest == ours.digest
    # The tables belong to this setting.
    used = dataclasses.replace(corpus, tokens=str(tmp_path / "cached"))
    used.build(tmp_path / "run")
    for mode in ("exact", ""):
        with pytest.raises(BadInput, match=f"was made with drop_duplicates='near', this recipe has '{mode}'; set it b"):
            dataclasses.replace(used, drop_duplicates=mode).build(tmp_path / "other")
