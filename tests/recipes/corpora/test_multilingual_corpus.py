"""The multilingual corpus on a small folder of the same formats: no text is in both training and evaluation."""

import gzip
import itertools
import json

import pytest
from helpers.python_code import write_packages

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.data.io.set_samples import draw, sampled
from pplx_jax.data.sources.overlap import Overlap, texts_within
from pplx_jax.evaluation.scoring.retrieval_sets import read_sets
from pplx_jax.recipes.corpora.docs_corpus import DocsCorpus
from pplx_jax.recipes.corpora.markdown_sections import sections
from pplx_jax.recipes.corpora.multilingual_corpus import MultilingualCorpus
from pplx_jax.recipes.corpora.python_corpus import PythonCorpus
from pplx_jax.recipes.corpora.training_rows import cropped_pairs

LANGUAGES = ("eng", "deu", "fra")
KINDS = ("text", "pairs", "documents")
TRAINED, EVALUATED = ("questions-train", "mbxp-php"), ("questions-dev", "mbxp-java")


def write_gzipped(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_set(folder, questions):
    """Each (question, passage, parent) as a query with its one answer."""
    passages = [
        {"_id": f"d{at}", "text": passage, "parent": parent} for at, (_, passage, parent) in enumerate(questions)
    ]
    write_gzipped(folder / "corpus.jsonl.gz", passages)
    write_gzipped(
        folder / "queries.jsonl.gz", ({"_id": f"q{at}", "text": one} for at, (one, _, _) in enumerate(questions))
    )
    with gzip.open(folder / "qrels.tsv.gz", "wt") as file:
        file.writelines(f"q{at}\td{at}\t1\n" for at in range(len(questions)))


def sentence(*names):
    """Twenty words that no other names give."""
    return " ".join(f"{'x'.join(map(str, names))}w{number}" for number in range(20))


def questions(name, count=24):
    return [
        (
            f"what of {name} {at}?",
            f"{sentence(name, at)}. {sentence(name, at, 'b')}. {sentence(name, at, 'c')}.",
            f"p{at // 4}",
        )
        for at in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    train = questions("train")
    dev = questions("dev")
    train[5] = (train[5][0], dev[7][1], train[5][2])  # a passage that is evaluated on slipped in
    write_set(folder / "retrieval" / "questions-train", train)
    write_set(folder / "retrieval" / "questions-dev", dev)
    for language in ("php", "java"):
        tasks = [
            (f"Write a {language} function to do thing {at}.", f"{language} {sentence(language, at)}", f"t{at}")
            for at in range(40)
        ]
        write_set(folder / "retrieval" / f"mbxp-{language}", tasks)
    lines = [
        {"lang": lang, "doc": f"doc{line // 8}", "line": line, "text": sentence(lang, line)}
        for lang, line in itertools.product(LANGUAGES, range(160))
    ]
    write_gzipped(folder / "text" / "ntrex.jsonl.gz", lines)
    pages = [
        {
            "lang": lang,
            "path": f"page{page}.md",
            "text": f"# Title {page} {lang} {{ #title }}\n\n{sentence('page', lang, page)}\n\n"
            f"## Part {lang} {{ #part }}\n\n{sentence('part', lang, page)}\n",
        }
        for lang, page in itertools.product(("en", "de"), range(20))
    ]
    write_gzipped(folder / "text" / "fastapi-docs.jsonl.gz", pages)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    root = write_packages(tmp_path_factory.mktemp("code"), ("alpha", "beta", "gamma"))
    return PythonCorpus(roots=(str(root),), held_out=("gamma",))


def corpus(folder, python, **fields):
    return MultilingualCorpus(
        path=str(folder), python=python, **{"trained": TRAINED, "evaluated": EVALUATED, "languages": ("deu",), **fields}
    )


@pytest.fixture(scope="module")
def built(folder, python, tmp_path_factory):
    output = tmp_path_factory.mktemp("corpus") / "corpus"
    return output, corpus(folder, python).build(output)


def rows_of(output, name):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sets_are_those_named_and_training_has_every_source(built):
    output, counts = built
    assert set(read_sets(output / "evaluation")) == {"python", *EVALUATED, "ntrex-deu"}
    sources = {row["source"] for row in rows_of(output, "pairs")}
    assert sources >= {"python", *TRAINED, "ntrex", "fastapi-docs", "fastapi-docs-across"}
    assert {row["source"] for row in rows_of(output, "documents")} >= {"questions-train", "ntrex", "fastapi-docs"}
    assert counts == json.loads((output / "counts.json").read_text())


def test_no_text_of_a_set_is_trained_on_and_what_was_is_counted(built):
    output, counts = built
    sets = read_sets(output / "evaluation").values()
    overlap = Overlap(text for one in sets for text in (*one.documents, *one.queries))
    checked = 0
    for name in ("text", "pairs", "documents"):
        for row in rows_of(output, name):
            for text in texts_within(row):
                checked += 1
                assert not overlap.of(text), text
    assert checked == counts["checked_texts"]
    # The passage that slipped in: its pair and crop, its text, and the document it is a chunk of.
    assert counts["dropped_for_overlap"]["pairs"] >= 2
    assert min(counts["dropped_for_overlap"].values()) >= 1


def test_a_task_is_on_one_side_in_every_programming_language(built):
    output, _ = built
    trained = {row["query"].split("thing ")[1] for row in rows_of(output, "pairs") if row["source"] == "mbxp-php"}
    tested = {text.split("thing ")[1] for text in read_beir(output / "evaluation" / "mbxp-java").queries}
    assert trained and tested and not trained & tested


def test_aligned_sentences_are_held_out_by_document(built, folder):
    output, _ = built
    held_out = {text for text in read_beir(output / "evaluation" / "ntrex-deu").documents}
    lines = {int(text.split("xw0")[0].split()[0].split("w")[0].rpartition("x")[2]) for text in held_out}
    documents = {line // 8 for line in lines}
    assert 0 < len(documents) < 20 and len(lines) == 8 * len(documents)
    for row in rows_of(output, "pairs"):
        if row["source"] == "ntrex":
            assert int(row["query"].split("w0")[0].rpartition("x")[2]) // 8 not in documents
            # Both sides are one line in two languages.
            one, other = (row[name].split("w0")[0].rpartition("x") for name in ("query", "document"))
            assert one[2] == other[2] and one[0] != other[0]


def test_headings_find_the_same_section_in_another_language(built):
    output, _ = built
    across = [row for row in rows_of(output, "pairs") if row["source"] == "fastapi-docs-across"]
    for row in across:
        page = row["query"].split("Title ")[1].split()[0]
        other = "de" if " en" in row["query"] else "en"
        assert f"x{other}x{page}w0" in row["document"]


def test_development_never_reads_the_sets_that_are_tested(folder, python, tmp_path):
    fields = {"split": "development", "evaluated": ("no-such-set",), "unseen_packages": ("beta",)}
    counts = corpus(folder, python, **fields).build(tmp_path / "corpus")
    assert set(counts["evaluated"]) == {"python", *TRAINED, "ntrex-deu", "fastapi-docs"}
    packages = {row["_id"].split(".")[0] for row in rows_of(tmp_path / "corpus" / "evaluation" / "python", "corpus")}
    assert packages == {"beta"}
    assert {row["source"] for row in rows_of(tmp_path / "corpus", "documents")} >= {*TRAINED[:1], "fastapi-docs"}
    tested = set(read_beir(folder / "retrieval" / "questions-train").query_ids)
    assert 0 < counts["evaluated"]["questions-train"]["queries"] < len(tested)


def test_development_trains_nothing_of_what_it_leaves_unseen(folder, python, tmp_path):
    unseen = (*TRAINED, "fastapi-docs")
    counts = corpus(folder, python, split="development", unseen=unseen, unseen_packages=("beta",)).build(tmp_path / "c")
    sources = {row["source"].removesuffix("-docstring") for name in KINDS for row in rows_of(tmp_path / "c", name)}
    assert {source.split(".")[0] for source in sources} == {"ntrex", "python"}
    # Whole sets are searched, but for tasks, of which those that no programming language trains on.
    questions = read_beir(folder / "retrieval" / TRAINED[0])
    assert counts["evaluated"][TRAINED[0]]["queries"] == len(questions.query_ids)
    assert counts["evaluated"]["fastapi-docs"]["documents"] == 40
    assert 0 < counts["evaluated"]["mbxp-php"]["queries"] < 40


def test_sentences_are_trained_on_in_the_languages_named(folder, python, tmp_path):
    corpus(folder, python, trained_languages=("deu",)).build(tmp_path / "corpus")
    texts = [row["text"] for row in rows_of(tmp_path / "corpus", "text") if row["source"] == "ntrex"]
    assert {text.split("x")[0] for text in texts} == {"eng", "deu"}


def test_a_sentence_has_several_partners(folder, python, built, tmp_path):
    corpus(folder, python, partners=3).build(tmp_path / "corpus")

    def pairs(output):
        return [(row["query"], row["document"]) for row in rows_of(output, "pairs") if row["source"] == "ntrex"]

    one, three = pairs(built[0]), pairs(tmp_path / "corpus")
    assert set(one) < set(three) and len(three) == len(set(three)) > 1.5 * len(one)


def test_the_same_folder_gives_the_same_bytes(built, folder, python, tmp_path):
    output, _ = built
    corpus(folder, python).build(tmp_path / "corpus")
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        assert (tmp_path / "corpus" / path.relative_to(output)).read_bytes() == path.read_bytes(), path


def test_documentation_is_trained_on_and_has_its_own_sets(folder, python, built, tmp_path):
    def page(lang, number):
        return f"<h1>Help {lang} {number}</h1><p>{sentence('help', lang, number)}</p>"

    for lang, number in itertools.product(("en", "de"), range(30)):
        path = tmp_path / f"docs/help-{lang}/usr/share/help/{lang}/{number}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(lang, number))
    # A page that a set of the corpus tests.
    tested = read_beir(built[0] / "evaluation" / "questions-dev").documents[0]
    (tmp_path / "docs/help-en/usr/share/help/en/0.html").write_text(f"<h1>Help</h1><p>{tested}</p>")
    docs = DocsCorpus(path=str(tmp_path / "docs"), held_out_share=0.2, across=("de",))
    output = tmp_path / "corpus"
    counts = corpus(folder, python, docs=docs).build(output)
    without = built[1]
    added = counts["evaluated"].keys() - without["evaluated"].keys()
    assert added == {"docs-en", "docs-de-en"}
    assert counts["pairs_of"].keys() - without["pairs_of"].keys() == {"help", "help-across"}
    assert {name: counts["evaluated"][name] for name in without["evaluated"]} == without["evaluated"]
    assert counts["dropped_for_overlap"]["pairs"] > without["dropped_for_overlap"]["pairs"]
    overlap = Overlap(text for one in read_sets(output / "evaluation").values() for text in one.documents)
    assert not any(overlap.of(text) for row in rows_of(output, "pairs") for text in texts_within(row))


def test_samples_of_sources_and_of_sets(folder, python, tmp_path):
    fields = {"most_pairs": 10, "most_pairs_of": {"ntrex": 13, "python": 0}, "most_queries": 5, "most_documents": 8}
    counts = corpus(folder, python, **fields).build(tmp_path / "corpus")
    assert counts["pairs_of"].pop("ntrex") == 13 and counts["pairs_of"].pop("python") > 100
    assert max(counts["pairs_of"].values()) == 10
    assert all(of["queries"] <= 5 and of["documents"] < 16 for of in counts["evaluated"].values())


def test_sets_of_the_same_passages_are_sampled_alike(folder):
    whole = read_beir(folder / "retrieval" / "questions-dev")
    one = sampled(whole, 8, 0, seed=0)
    assert len(one.documents) == 8 and len(set(one.parents)) == 2
    assert all(set(one.qrels[name]) <= set(one.document_ids) for name in one.query_ids)
    assert sampled(whole, 8, 3, seed=0).documents == one.documents


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"evaluated": ("mbxp-php",)}, "mbxp-php both trained and evaluated"),
        ({"split": "train"}, "split='train'"),
        ({"unseen": ("mbxp-java",)}, "mbxp-java is not trained on"),
        ({"split": "development"}, "unseen_packages"),
        ({"trained_languages": ("xxx",)}, "ntrex has no xxx; it has deu, eng, fra"),
        ({"path": "/nowhere"}, "no folder /nowhere"),
        ({"languages": ("xxx",)}, "ntrex has no xxx; it has deu, eng, fra"),
        ({"trained": ("nothing",)}, "nothing"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(folder, python, tmp_path, fields, words):
    with pytest.raises(BadInput, match=words):
        corpus(
            **{"folder": folder, "python": python, **fields}
            if "path" not in fields
            else {"folder": "/nowhere", "python": python}
        ).build(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_headings_in_code_are_no_sections():
    page = (
        "# Title { #t }\n\n" + "a" * 90 + "\n\n```bash\n# a comment\n" + "b" * 90 + "\n```\n\n## `x` **y**\n" + "c" * 90
    )
    first, second = sections(page)
    assert (first.heading, first.anchor, "# a comment" in first.text) == ("Title", "t", True)
    assert (second.title, second.heading, second.anchor) == ("Title", "x y", "")


def test_a_crop_is_a_sentence_and_the_rest_of_its_text():
    text = "The first sentence is long enough. So is the second sentence here. And the third sentence also."
    (row,) = cropped_pairs("s", [text, "Too short. No."], seed=0)
    assert row["query"] not in row["document"] and row["query"] in text
    assert len(row["query"]) + len(row["document"]) + 1 == len(text)


def test_draws_depend_on_their_names_alone():
    assert draw(0, "a", 1) == draw(0, "a", 1) and 0 <= draw(0, "a", 1) < 1
    assert len({draw(seed, name) for seed in range(3) for name in "abc"}) == 9
