"""ToolRet on tiny files of the hub's form, its figures against pytrec_eval and ToolRet's own arithmetic."""

import collections
import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import pytrec_eval
from helpers.word_encoder import WordEncoder

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation import evaluate as verb
from pplx_jax.evaluation.registry import open_benchmark
from pplx_jax.evaluation.scoring.system import System
from pplx_jax.evaluation.suites import toolret

TOOLS = {
    "code": ["add two numbers", "sort a list", "plot a curve", "load a tensor"],
    "customized": ["book a table", "sort a mail list", "draw a picture"],
    "web": ["weather of a city", "songs of a singer", "recipe of a dish", "add a song to a list", "films of a year"],
}
# Task -> (request, instruction, numbers of its tools in its category).
REQUESTS = {
    "toolink": [("sort my numbers in a list", "find code", [0, 1]), ("plot it", "find a plot of a curve", [2])],
    "metatool": [("a table for two", "book it", [0]), ("a picture of a city", "draw a picture", [2, 0])],
    "apigen": [("a song", "find songs of a singer", [1, 3]), ("weather", "of a city", [0]), ("", "films", [4])],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toolret")

    def write(repo, config, split, rows):
        (folder / repo / config).mkdir(parents=True)
        path = folder / repo / config / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)

    for category, documentation in TOOLS.items():
        rows = [{"id": f"{category}_tool_{n}", "documentation": text} for n, text in enumerate(documentation)]
        write("ToolRet-Tools", category, "tools", rows)
    for task, requests in REQUESTS.items():
        category = toolret.CATEGORY_OF[task]
        rows = []
        for number, (query, instruction, relevant) in enumerate(requests):
            labels = [{"id": f"{category}_tool_{n}", "doc": {"default": math.nan}, "relevance": 1} for n in relevant]
            row = {"id": f"{task}_query_{number}", "query": query, "instruction": instruction}
            rows.append({**row, "labels": json.dumps(labels), "category": category})
        write("ToolRet-Queries", task, "queries", rows)
    return folder


def independent(task, *, instructions, by_category):
    """The figures by numpy cosines, pytrec_eval, and the sums of toolret/eval.py."""
    own = toolret.CATEGORY_OF[task]
    pool = {f"{c}_tool_{n}": text for c, texts in TOOLS.items() for n, text in enumerate(texts)}
    if by_category:
        pool = {name: text for name, text in pool.items() if name.startswith(own)}
    requests = REQUESTS[task]
    texts = [f"Instruct: {i}\nQuery: {q}" if instructions else q for q, i, _ in requests]
    model = WordEncoder()
    queries, tools = (model.encode(list(of), quantization="none") for of in (texts, pool.values()))
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(tools, axis=1)
    cosines = np.divide(queries @ tools.T, norms, out=np.zeros_like(norms), where=norms > 0)
    run = {
        str(n): dict(zip(pool, map(float, row), strict=True)) if queries[n].any() else {}  # nothing matches no words
        for n, row in enumerate(cosines)
    }
    qrels = {str(n): {f"{own}_tool_{tool}": 1 for tool in relevant} for n, (_, _, relevant) in enumerate(requests)}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10", "P.10", "map_cut.10"}).evaluate(run)
    sums = collections.Counter()
    for values in found.values():
        sums["ndcg@10"] += values["ndcg_cut_10"]
        sums["recall@10"] += values["recall_10"]
        sums["precision@10"] += values["P_10"]
        sums["map@10"] += values["map_cut_10"]
        sums["completeness@10"] += values["recall_10"] == 1
    return {name: total / len(found) for name, total in sums.items()}


@pytest.mark.parametrize("instructions", [False, True])
@pytest.mark.parametrize("by_category", [False, True])
def test_both_protocols_with_and_without_instructions(data, instructions, by_category):
    name = "toolret" + "-by-category" * by_category + "-instructions" * instructions
    benchmark = open_benchmark(name, data)
    tasks = {task.name: task for task in benchmark.tasks}
    assert len(tasks) == 35
    system = System("words", WordEncoder(), verb.Settings("none"))
    parts = {task: tasks[task].evaluate(system) for task in REQUESTS}
    expected = {task: independent(task, instructions=instructions, by_category=by_category) for task in REQUESTS}
    for task, (part,) in parts.items():
        assert {metric: part.metrics[metric] for metric in expected[task]} == pytest.approx(expected[task], abs=1e-6)
        assert part.documents == (len(TOOLS[toolret.CATEGORY_OF[task]]) if by_category else 12)
    averages = benchmark.averages(parts)
    values = [expected[task]["ndcg@10"] for task in REQUESTS]
    assert averages["ndcg@10"] == averages["ndcg@10 of categories"] == pytest.approx(np.mean(values), abs=1e-6)
    assert averages["ndcg@10 web"] == pytest.approx(expected["apigen"]["ndcg@10"], abs=1e-6)
    counts = [len(requests) for requests in REQUESTS.values()]
    assert averages["ndcg@10 of queries"] == pytest.approx(np.average(values, weights=counts), abs=1e-6)
    assert averages["ndcg@10 of queries"] != pytest.approx(averages["ndcg@10"], abs=1e-4)
    assert averages["completeness@10"] == np.mean([expected[task]["completeness@10"] for task in REQUESTS])


def test_the_protocols_differ():
    figures = [
        tuple(independent(task, instructions=instructions, by_category=by_category)["ndcg@10"] for task in REQUESTS)
        for instructions in (False, True)
        for by_category in (False, True)
    ]
    assert len(set(figures)) == 4


def test_averages_weigh_tasks_categories_and_requests_apart():
    benchmark = open_benchmark("toolret")
    metrics = {"recall@10": 0.0, "completeness@10": 0.0}
    part = {
        task: [toolret.Part("test", "default", {"ndcg@10": value, **metrics}, queries, 9)]
        for task, value, queries in (("toolink", 0.1, 1), ("apigen", 0.2, 2), ("toolace", 0.6, 7))
    }
    averages = benchmark.averages(part)
    assert averages["ndcg@10"] == pytest.approx(0.3)
    assert (averages["ndcg@10 code"], averages["ndcg@10 web"]) == pytest.approx((0.1, 0.4))
    assert averages["ndcg@10 of categories"] == pytest.approx(0.25)
    assert averages["ndcg@10 of queries"] == pytest.approx(0.1 * 0.1 + 0.2 * 0.2 + 0.6 * 0.7)
    assert "ndcg@10 customized" not in averages


def test_tools_are_encoded_once_for_all_tasks(data, tmp_path, monkeypatch):
    model = WordEncoder()
    monkeypatch.setattr(verb, "load_encoder", lambda path, **prompts: model)
    arguments = ["eval", "--model=m", "--task=toolret", "--tasks=toolink,metatool,apigen", f"--data={data}"]
    assert cli.main([*arguments, "--quantization=int8,binary", f"--output={tmp_path / 'out'}", "--json"]) == 0
    assert model.encoded == 12 + 7
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["setting"] for one in result["settings"]] == ["int8", "binary"]
    assert [len(one["tasks"]) for one in result["settings"]] == [3, 3]
    assert not result["settings"][0]["complete"] and result["tasks_of_benchmark"] == 35
    assert cli.main(["eval", "--model=bm25", *arguments[2:]]) == 0


def test_what_is_missing_is_said_in_one_line(data, tmp_path):
    load = open_benchmark("toolret", tmp_path).tasks[0].load
    with pytest.raises(BadInput, match=r"no .*ToolRet-Tools/code/tools-\*.parquet .*: put the files of https://hugg"):
        load()
    folder = tmp_path / "ToolRet-Tools" / "code"
    folder.mkdir(parents=True)
    (folder / "tools-00000-of-00001.jsonl").write_text('{"id": "x", "text": "y"}\n')
    with pytest.raises(BadInput, match="ToolRet-Tools, code: no column documentation, only id, text"):
        load()
    (folder / "tools-00000-of-00001.jsonl").write_text('{"id": "x"\n')
    with pytest.raises(BadInput, match="line 1: not JSON"):
        load()


@pytest.mark.parametrize(
    "labels", [None, "{", "[7]", '{"id": "code_tool_0"}', '[{"id": "code_tool_0"}]', "[" * 100_000]
)
def test_labels_that_are_none_are_named(data, tmp_path, labels):
    with pytest.raises(BadInput, match="toolink: labels of 'q0' are not a JSON list of objects with id and relevance"):
        load_requests(data, tmp_path, [{"id": "q0", "query": "plot it", "instruction": "find", "labels": labels}])


def test_two_requests_of_one_id_are_refused(data, tmp_path):
    row = {"id": "q0", "query": "plot it", "instruction": "find", "labels": "[]"}
    with pytest.raises(BadInput, match="toolink: two requests have the id 'q0'"):
        load_requests(data, tmp_path, [row, {**row, "query": "sort it"}])


def load_requests(data, folder, rows):
    """Of toolink, in place of those that `data` has."""
    (folder / "ToolRet-Tools").symlink_to(data / "ToolRet-Tools")
    path = folder / "ToolRet-Queries" / "toolink" / "queries-00000-of-00001.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = (task for task in open_benchmark("toolret", folder).tasks if task.name == "toolink")
    return task.load()


def test_without_a_network_the_hub_names_the_files(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(BadInput, match=r"mangopy/ToolRet-Tools \(no network\).*FOLDER/ToolRet-Tools/ \(code/tools-\*"):
        open_benchmark("toolret").tasks[0].load()


def test_the_hub_is_asked_for_a_pinned_revision(data, monkeypatch):
    import datasets

    asked = []

    def local(repo, config, *, split, revision):
        asked.append((repo, config, split, revision))
        path = data / repo.partition("/")[2] / config / f"{split}-00000-of-00001.parquet"
        return datasets.Dataset.from_list(pyarrow.parquet.read_table(path).to_pylist())

    monkeypatch.setattr("datasets.load_dataset", local)
    (task,) = (task for task in open_benchmark("toolret").tasks if task.name == "apigen")
    (from_disk,) = (task for task in open_benchmark("toolret", data).tasks if task.name == "apigen")
    assert task.load() == from_disk.load()
    assert ("mangopy/ToolRet-Queries", "apigen", "queries", toolret.QUERIES[1]) in asked and len(asked) == 4
    assert toolret.TOOLS[1] in task.revision and task.revision != from_disk.revision
