"""BERGEN: runs as its own code reads them, matches by hand, a reader on loopback, and the published files' formats."""

import contextlib
import json

import pytest
from helpers.loopback_server import serving
from helpers.vespa_stand_in import VespaStandIn
from helpers.vespa_stand_in import running as running_vespa
from helpers.word_encoder import WordEncoder

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.scoring.system import Settings, System
from pplx_jax.evaluation.suites.bergen.benchmark import BergenOptions, match, normalized, open_benchmark, run_name
from pplx_jax.evaluation.suites.bergen.data import FILES, passages_of, read_questions, write_passages
from pplx_jax.evaluation.suites.bergen.reader import Reader
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.vespa import build

PAGES = [
    {"wikipedia_id": "7", "wikipedia_title": "Bergen", "text": ["Bergen\n", "Section::::Sea.\n", "BULLET::::- fjord\n",
     "The city of rain is Bergen .\n"]},
    {"wikipedia_id": "9", "wikipedia_title": "Oslo", "text": ["Oslo\n", "The capital of Norway is Oslo .\n"]},
    {"wikipedia_id": "11", "wikipedia_title": "Long", "text": [" ".join(f"w{n}" for n in range(205))]},
]  # fmt: skip


class StandInReader:
    """Answers with the last word of the first document, or as it is told to."""

    def __init__(self):
        self.requests, self.failing, self.keys = [], None, set()

    def answer(self, request):
        self.requests.append(request)
        if self.failing is not None and len(self.requests) > self.failing:
            return 400, {"error": {"message": "out of tokens"}}
        user = request["messages"][1]["content"]
        first = user.partition("Document 1: ")[2].partition("\n")[0]
        return 200, {"choices": [{"message": {"role": "assistant", "content": f"It is {first.split()[-2]}!"}}]}

    @contextlib.contextmanager
    def running(self):
        def answer(_, path, headers, body):
            self.keys.add(headers.get("Authorization"))
            return (
                self.answer(json.loads(body)) if path == "/v1/chat/completions" else (404, {"detail": "no such path"})
            )

        with serving(answer) as url:
            yield f"{url}/v1"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kilt")
    (folder / "pages.json").write_text("".join(json.dumps(page) + "\n" for page in PAGES))
    assert write_passages(folder / "pages.json", folder / "passages.jsonl") == 5
    encoder = WordEncoder(64, max_length=200)
    embed_file(folder / "model", folder / "passages.jsonl", folder / "vectors", encoder=encoder)
    return folder / "vectors"


@pytest.fixture
def data(embedded, tmp_path):
    build_index(embedded, tmp_path / "index")
    (tmp_path / "nq-dev-kilt.jsonl").write_text(
        "".join(
            json.dumps({"id": identity, "input": text, "output": [{"answer": answer}, {"provenance": []}]}) + "\n"
            for identity, text, answer in [("n1", "city of rain", "bergen"), ("n2", "capital of Norway", "Stockholm")]
        )
    )
    return tmp_path


def words(quantization="int8"):
    return System("models/words", WordEncoder(64, max_length=200), Settings(quantization=quantization))


def bergens_load_trec(path):
    """How naver/bergen's utils.py takes a run apart: exactly six cells a line, tabs between, order kept."""
    run = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split("\t")
        run.setdefault(query, []).append((document, float(score)))
    return run


def test_matches_by_hand():
    assert normalized("The  U.S.A., an  'old' state\n") == "usa old state"
    assert match("It was the Eiffel-Tower.", ["eiffel tower"]) == 0.0  # punctuation goes, and no space comes
    assert match("It was the Eiffel Tower.", ["Louvre", "an Eiffel tower!"]) == 1.0
    assert match("Bergen", ["bergen op zoom"]) == 0.0  # the answer holds the reference, not the other way round
    assert match("1989, in theory", ["the 1989"]) == 1.0
    assert match("concatenate", ["cat"]) == 1.0  # within a word too, as BERGEN has it
    assert match("", ["x"]) == 0.0
    assert normalized("a\u0301 the\u0301 b") == "a\u0301 the\u0301 b"  # letters with accents are no articles


def test_passages_are_bergens():
    assert passages_of(PAGES[0]) == ["Bergen. Bergen Section:Sea. The city of rain is Bergen ."]
    long = passages_of(PAGES[2])
    assert [len(text.split()) for text in long] == [101, 101, 6]
    assert long[2] == "Long. w200 w201 w202 w203 w204"


def test_passages_are_numbered_through(embedded):
    lines = (embedded.parent / "passages.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert [json.loads(line)["source"] for line in lines] == ["7", "9", "11", "11", "11"]


def test_questions_as_their_makers_publish_them(tmp_path):
    output = [{"answer": "a"}, {"answer": ""}, {"answer": "b"}]
    for file in ("nq-dev-kilt.jsonl", "hotpotqa-dev-kilt.jsonl", "triviaqa-dev_id-kilt.jsonl"):
        (tmp_path / file).write_text(json.dumps({"id": "t1", "input": "who?", "output": output}) + "\n")
    (tmp_path / "unfiltered-web-dev.json").write_text(json.dumps({"Data": [{"QuestionId": "t1", "Question": "what?"}]}))
    pairs = [{"short_answers": ["x", "y"]}, {"short_answers": ["x"]}]
    asqa = {"dev": {"-87": {"ambiguous_question": "which?", "qa_pairs": pairs}}, "train": {}}
    (tmp_path / "ASQA.json").write_text(json.dumps(asqa))
    (tmp_path / "popQA.tsv").write_text('id\tquestion\tpossible_answers\n42\twhere?\t"[""p"", ""q r""]"\n')
    read = {name: [(q.id, q.text, q.answers) for q in read_questions(name, tmp_path)] for name in FILES}
    assert read == {
        "kilt_nq": [("t1", "who?", ("a", "b"))],
        "kilt_hotpotqa": [("t1", "who?", ("a", "b"))],
        "kilt_triviaqa": [("t1", "what?", ("a", "b"))],
        "asqa": [("0", "which?", ("x", "y"))],
        "popqa": [("test0", "where?", ("p", "q r"))],
    }
    assert [task.name for task in open_benchmark("bergen", tmp_path).tasks] == list(FILES)
    (tmp_path / "ASQA.json").write_text("{}")
    with pytest.raises(BadInput, match="not the published file of asqa"):
        read_questions("asqa", tmp_path)
    with pytest.raises(BadInput, match=r"kilt_nq needs .*nq-dev-kilt.jsonl"):
        read_questions("kilt_nq", tmp_path / "index")


def test_runs_and_passages_without_a_reader(data):
    benchmark = open_benchmark("bergen", data, k=3, passages=1)
    (task,) = benchmark.tasks
    revision = task.revision
    (part,) = task.evaluate(words())
    assert task.revision == revision  # what it writes is none of its data
    assert (part.split, part.queries, part.documents, list(part.query_ids)) == ("dev", 2, 5, ["n1", "n2"])
    assert part.metrics == {"passages_match@1": 0.5}
    assert task.main_metric in part.metrics
    assert benchmark.averages({"kilt_nq": [part]}) == {"passages_match@1": 0.5}
    run = bergens_load_trec(data / "runs" / "run.retrieve.top_3.kilt_nq.kilt-100w.dev.words-int8.trec")
    assert list(run) == ["n1", "n2"]
    assert [[document for document, _ in found][0] for found in run.values()] == ["0", "1"]
    assert all(len(found) == 3 and found == sorted(found, key=lambda pair: -pair[1]) for found in run.values())
    # As the runs that naver/bergen ships are called.
    assert run_name("asqa", "bm25", 50) == "run.retrieve.top_50.asqa.kilt-100w.dev.bm25.trec"
    assert run_name("asqa", "naver/splade-v3", 50) == "run.retrieve.top_50.asqa.kilt-100w.dev.naver_splade-v3.trec"


def test_a_reader_answers_each_question_once(data, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    reader = StandInReader()
    with reader.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url + "/")
        (data / "options.json").write_text(json.dumps({"k": 3, "passages": 2, "reader_url": url, "reader_model": "m"}))
        (task,) = open_benchmark("bergen", data).tasks
        reader.failing = 1
        with pytest.raises(BadInput, match=r"does not answer as m \(status 400: out of tokens\)"):
            task.evaluate(words())
        kept = data / "runs" / "answers.kilt_nq.words-int8.jsonl"
        assert len(kept.read_text().splitlines()) == 1
        kept.write_text(kept.read_text() + '{"request": "cut o')  # as a kill may leave it
        reader.failing = None
        (part,) = task.evaluate(words())
        (again,) = task.evaluate(words())
    assert part.metrics == {"passages_match@2": 0.5, "match": 0.5} == again.metrics
    assert part.per_query["match"].tolist() == [1.0, 0.0]  # "It is Bergen!", "It is Oslo!"
    asked = [request["messages"][1]["content"] for request in reader.requests]
    assert len(asked) - 1 == 2 == len(set(asked))  # one failed and came again
    assert reader.keys == {"Bearer secret"}
    rain = next(
        request for request in reader.requests if "rain" in request["messages"][1]["content"].partition("Quest")[2]
    )
    assert {**rain, "messages": None} == {"model": "m", "messages": None, "max_tokens": 128, "temperature": 0}
    assert rain["messages"][1]["content"].startswith(
        "Documents:\nDocument 1: Bergen. Bergen Section:Sea. The city of rain is Bergen .\nDocument 2: "
    )
    assert rain["messages"][1]["content"].endswith("\n\nQuestion: city of rain")


@pytest.mark.parametrize("own", [None, "http://localhost:1/v1"])
def test_a_data_folder_does_not_choose_where_the_key_goes(data, monkeypatch, own):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", own) if own else monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    reader = StandInReader()
    with reader.running() as url:
        (data / "options.json").write_text(json.dumps({"k": 3, "passages": 2, "reader_url": url, "reader_model": "m"}))
        (task,) = open_benchmark("bergen", data).tasks
        task.evaluate(words())
    assert reader.keys == {None}


@pytest.mark.parametrize("connections", [1, 4])
def test_answers_on_their_way_are_kept_when_one_fails(tmp_path, connections):
    stand_in = StandInReader()
    stand_in.failing = 5
    with stand_in.running() as url:
        reader = Reader(url, "m", connections=connections)
        requests = [reader.request(f"question {number}", ["some text ."]) for number in range(40)]
        with pytest.raises(BadInput, match="out of tokens"):
            reader.answers(requests, tmp_path / "kept.jsonl")
        assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 5
        assert len(stand_in.requests) <= 5 + connections
        stand_in.failing, before = None, len(stand_in.requests)
        assert reader.answers([*requests, requests[0]], tmp_path / "kept.jsonl") == ["It is text!"] * 41
        assert len(stand_in.requests) - before == 35
        with pytest.raises(BadInput, match="does not answer as m .status 404"):
            Reader(url + "/x", "m").answers(requests[:1], tmp_path / "other.jsonl")


def test_prompts_are_filled_once():
    reader = Reader("http://x", "m", user_prompt="{question} | {passages}", passage_words=2)
    content = reader.request("{passages}?", ["one two three", "{question}"])["messages"][1]["content"]
    assert content == "{passages}? | Document 1: one two\nDocument 2: {question}\n"


def test_an_index_in_vespa_gives_the_same_run(data, embedded, tmp_path):
    task = open_benchmark("bergen", data, k=3, passages=3).tasks[0]
    (here,) = task.evaluate(words())
    expected = bergens_load_trec(data / "runs" / run_name("kilt_nq", "words-int8", 3))
    with running_vespa(VespaStandIn()) as url:
        other = tmp_path / "vespa"
        other.mkdir()
        (other / "nq-dev-kilt.jsonl").symlink_to(data / "nq-dev-kilt.jsonl")
        build(embedded, other / "index", url=url, config_url=url)
        (there,) = open_benchmark("bergen", other, k=3, passages=3).tasks[0].evaluate(words())
    assert here.metrics == there.metrics
    found = bergens_load_trec(other / "runs" / run_name("kilt_nq", "words-int8", 3))
    for query, ranked in expected.items():
        assert [document for document, _ in found[query]] == [document for document, _ in ranked]
        assert [score for _, score in found[query]] == pytest.approx([score for _, score in ranked], abs=1e-6)


def test_what_is_refused(data, tmp_path):
    with pytest.raises(BadInput, match="needs --data"):
        open_benchmark("bergen", None)
    with pytest.raises(
        BadInput, match="has no question set of bergen; put these files there: kilt_nq: nq-dev-kilt.jsonl"
    ):
        open_benchmark("bergen", data / "index")
    with pytest.raises(BadInput, match="passages=5, k=2"):
        BergenOptions(k=2)
    with pytest.raises(BadInput, match="needs both reader_url and reader_model"):
        BergenOptions(reader_url="http://x")
    (task,) = open_benchmark("bergen", data).tasks
    with pytest.raises(BadInput, match="but bm25 has none"):
        task.evaluate(System("bm25", None))
    with pytest.raises(BadInput, match="holds int8 vectors of 64.*give --quantization int8"):
        task.evaluate(words("binary"))
    with pytest.raises(BadInput, match="was made by model words, other is new"):
        task.evaluate(System("other", WordEncoder(64, fingerprint="new")))
    (data / "bad.json").write_text('{"wikipedia_id": "1"}\n')
    with pytest.raises(BadInput, match="bad.json, line 1: not a KILT page"):
        write_passages(data / "bad.json", data / "out.jsonl")
    assert not (data / "out.jsonl").exists()
