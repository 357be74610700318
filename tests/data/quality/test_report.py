"""The report of a small corpus whose duplicates, overlaps, languages and bad rows are known."""

import html
import json
import re
import textwrap

import pytest
from helpers import tiny

from pplx_jax.cli import main as cli
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary

LONG = "open the first file of the index and read each vector of the table before you close it again".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    tiny.tiny_vocabulary(folder)
    texts = [" ".join(f"{word} {n}" for word in LONG) for n in range(20)]
    near = " ".join([*LONG * 4, "once more"])
    evaluation = "a question about vectors that nobody may train on, for it is what the model is asked in the end"
    texts += [texts[3], " ".join(LONG * 4), near, f"before {evaluation} after"]
    rows = [{"text": text, "language": "de" if n % 2 else "en"} for n, text in enumerate(texts)]
    lines = [json.dumps(row) + "\n" for row in rows] + ['{"text": 3}\n']
    (folder / "text.jsonl").write_text("".join(lines))
    pairs = [{"query": f"read {n} file", "positive": text} for n, text in enumerate(texts[:16])]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    beir = folder / "beir"
    beir.mkdir()
    (beir / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": evaluation}) + "\n")
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "close"}\n')
    (beir / "qrels.tsv").write_text("q\td\t1\n")
    (folder / "recipe.gin").write_text(f"""
run.corpus = @SourceCorpus()
run.lengths = @Lengths()
run.stages = [@diffusion/Training(), @pair/Training()]
SourceCorpus.sources = [@notes/Source(), @asked/Source()]
SourceCorpus.evaluation = '{beir}'
Source.max_bad_share = 0.1
notes/Source:
    name = 'notes'
    kind = 'text'
    path = '{folder}/text.jsonl'
asked/Source:
    name = 'asked'
    kind = 'pair'
    path = '{folder}/pairs.jsonl'
Lengths.text = 64
Lengths.query = 8
Lengths.document = 20
Lengths.chunk = 8
Lengths.chunks = 8
Training.optimizer = @Optimizer()
Training.steps = 1
Optimizer.peak_learning_rate = 1.0
diffusion/Training.stage = @DiffusionStage()
DiffusionStage.batch_size = 4
DiffusionStage.row_length = 64
pair/Training.stage = @PairStage()
PairStage.batch_size = 8
PairStage.row_length = 64
""")
    return folder


def report(folder, workdir, capsys, *params):
    words = ["data", "report", f"--gin_file={folder}/recipe.gin", f"--workdir={workdir}", f"--vocabulary={folder}"]
    assert cli.main([*words, "--json", *params]) == cli.DONE
    return json.loads(capsys.readouterr().out)


def test_it_counts_what_is_there(folder, tmp_path, capsys):
    result = report(folder, tmp_path, capsys)
    assert result["examples"] == 24 + 16 and result["bad_rows"] == 1 and result["overlap"] == 1
    assert result["duplicates"] == {"exact": 1, "near": 1}
    assert result["languages"] == {"(none named)": 16, "en": 12, "de": 12}
    assert 0.8 < result["fill"] <= 1 and set(result["fill_by_stage"]) == {"diffusion", "pair"}
    whole = json.loads((tmp_path / "data" / "report" / "report.json").read_text())
    notes, asked = whole["sources"]["diffusion"]["notes"], whole["sources"]["pair"]["asked"]
    assert result["tokens"] == notes["tokens"] + asked["tokens"] > 0
    assert notes["rows"]["samples"] == {"no text of type str": [f"{folder}/text.jsonl:25"]}
    assert "nobody may train on" in notes["overlap"]["samples"][0]
    assert asked["truncated"]["document"] == 16 and asked["truncated"]["query"] > 0
    lengths = asked["token_lengths"]["document"]
    assert lengths["texts"] == 16 and lengths["median"] <= lengths["p90"] <= lengths["longest"]
    # samples after every step, and a page of the same
    assert [list(sample) for sample in asked["samples"]] == [["read", "checked", "tokenised", "cut"]] * 3
    assert "document, 20 tokens" in asked["samples"][0]["cut"]
    page = (tmp_path / "data" / "report" / "report.html").read_text()
    assert "nobody may train on" in page and "A packed sequence: pair" in page and "<script" not in page
    assert "Every source was read to its end." in page
    # the same in text, which is printed too
    text = (tmp_path / "data" / "report" / "report.txt").read_text()
    assert result["text"] == text and sorted(path.name for path in (tmp_path / "data" / "report").iterdir()) == [
        f"report.{ending}" for ending in ("html", "json", "txt")
    ]
    assert f"  Tokens of document: texts 16, mean {lengths['mean']}, median {lengths['median']}" in text
    assert 0 < asked["fill"] <= 1 and f"  Fill of packed sequences: {asked['fill']:.1%}\n" in text
    said = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))
    for one in (notes, asked):
        for step in (step for sample in one["samples"] for step in sample.values()):
            assert textwrap.indent(step, "    ") in text and " ".join(step.split()) in said


def test_it_says_that_it_looked_at_the_first_ones_alone(folder, tmp_path, capsys):
    result = report(folder, tmp_path, capsys, "--examples=20")
    assert result["examples"] == 20 + 16
    note = "Of each source the first 20 examples were looked at; the counts of 1 of 2 end there."
    assert note in result["text"] and "Examples: 20 (the first ones only)" in result["text"]
    page = (tmp_path / "data" / "report" / "report.html").read_text()
    assert note in page and "20 (the first ones only)" in page


def test_overlap_is_dropped_by_a_flag(folder, tmp_path, capsys):
    result = report(folder, tmp_path, capsys, "--gin_param=SourceCorpus.drop_overlap = True")
    assert result["examples"] == 23 + 16 and result["overlap"] == 1


def test_duplicates_that_training_leaves_out_are_counted_over_all_sources(folder, tmp_path, capsys):
    (tmp_path / "more.jsonl").write_text((folder / "text.jsonl").read_text().splitlines()[0] + "\n")
    sources = "SourceCorpus.sources = [@notes/Source(), @more/Source()]"
    more = [f"more/Source.{name} = '{value}'" for name, value in {"name": "more", "kind": "text"}.items()]
    more += [sources, f"more/Source.path = '{tmp_path}/more.jsonl'", "run.stages = []"]
    params = [f"--gin_param={one}" for one in more]
    assert report(folder, tmp_path, capsys, *params)["duplicates"] == {"exact": 1, "near": 1}
    result = report(folder, tmp_path, capsys, *params, "--gin_param=SourceCorpus.drop_duplicates = 'exact'")
    assert result["duplicates"] == {"exact": 2, "near": 1}
    assert "  Exact duplicates, left out of training: 1\n  Near duplicates: 1\n" in result["text"]


def test_a_missing_evaluation_set_is_said(folder, tmp_path, capsys):
    words = ["data", "report", f"--gin_file={folder}/recipe.gin", f"--workdir={tmp_path}", f"--vocabulary={folder}"]
    assert cli.main([*words, "--gin_param=SourceCorpus.evaluation = 'biir'"]) == cli.BAD_INPUT
    assert "biir: no evaluation set" in capsys.readouterr().err and not (tmp_path / "data").exists()


@pytest.mark.parametrize("flag", ["--examples=-1", "--examples=0", "--samples=-1"])
def test_numbers_that_mean_nothing_are_refused(folder, tmp_path, capsys, flag):
    words = ["data", "report", f"--gin_file={folder}/recipe.gin", f"--workdir={tmp_path}", f"--vocabulary={folder}"]
    assert cli.main([*words, flag]) == cli.BAD_INPUT
    assert flag in capsys.readouterr().err


def test_every_step_of_a_sample_is_of_the_same_row(folder, tmp_path, capsys):
    documents = [
        {
            "document_id": f"d{n}",
            "chunks": [f"read {n}", f"write {n}"],
            "queries": [{"text": f"ask {n}", "chunk": 1}] * n,
        }
        for n in (2, 1)
    ]
    lines = ["{", '{"chunks": []}', *map(json.dumps, documents)]
    (tmp_path / "documents.jsonl").write_text("".join(line + "\n" for line in lines))
    texts = ["", *(f"{word} " * 20 for word in ("file", "index", "vector"))]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    report(
        folder,
        tmp_path,
        capsys,
        "--gin_param=run.stages = []",
        "--gin_param=Source.max_bad_share = 0.6",
        f"--gin_param=notes/Source.path = '{tmp_path}/texts.jsonl'",
        "--gin_param=asked/Source.kind = 'contextual'",
        f"--gin_param=asked/Source.path = '{tmp_path}/documents.jsonl'",
    )
    whole = json.loads((tmp_path / "data" / "report" / "report.json").read_text())["sources"]
    vocabulary = load_vocabulary(folder)
    for line, sample, n in zip((3, 4), whole["contextual"]["asked"]["samples"], (2, 1), strict=True):
        assert sample["read"].startswith(f"{tmp_path}/documents.jsonl:{line}\n") and f'"d{n}"' in sample["read"]
        assert json.loads(sample["checked"])["chunks"] == [f"read {n}", f"write {n}"]
        ids = [("query", f"ask {n}")] * n + [("chunks", f"read {n}"), ("chunks", f"write {n}")]
        ids = [f"{name}: {' '.join(map(str, vocabulary.encode(text)))}" for name, text in ids]
        assert sample["tokenised"].splitlines() == ids
        assert len(sample["cut"].splitlines()) == n + 2
    for line, sample, text in zip((2, 3, 4), whole["diffusion"]["notes"]["samples"], texts[1:], strict=True):
        assert sample["read"].startswith(f"{tmp_path}/texts.jsonl:{line}\n") and text in sample["read"]
        assert json.loads(sample["checked"])["text"] == text
        assert set(re.findall("file|index|vector", sample["cut"])) == {text.split()[0]}


def test_an_odd_column_of_a_sample_is_shown(folder, tmp_path, capsys):
    """Half of a surrogate pair, and nesting that can be read but hardly written."""
    deep = "[" * 900 + "]" * 900
    lines = [
        f'{{"text": "{"file " * 30}", {odd}}}\n' for odd in ('"meta": "\\ud800"', f'"deep": {deep}', '"\\ud800": 1')
    ]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    report(folder, tmp_path, capsys, f"--gin_param=notes/Source.path = '{tmp_path}/texts.jsonl'")
    whole = json.loads((tmp_path / "data" / "report" / "report.json").read_text())["sources"]
    samples = [sample["read"] for sample in whole["diffusion"]["notes"]["samples"]]
    assert '"meta": "\\ud800"' in samples[0] and "deep" in samples[1] and '"\\ud800": 1' in samples[2]


def test_a_dry_run_writes_nothing_and_trains_nothing(folder, tmp_path, capsys):
    result = report(folder, tmp_path / "run", capsys, "--dry_run")
    assert result["writes"] == [] and "stages" not in result and not (tmp_path / "run").exists()


def test_no_vocabulary_is_said(folder, tmp_path, capsys):
    words = ["data", "report", f"--gin_file={folder}/recipe.gin", f"--workdir={tmp_path}"]
    assert cli.main(words) == cli.BAD_INPUT
    assert "run the recipe first, or give --vocabulary" in capsys.readouterr().err
