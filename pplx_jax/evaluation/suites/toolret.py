"""ToolRet: retrieval of the tools that a request needs (arXiv 2503.01763; mangopy/tool-retrieval-benchmark, toolret/).

35 tasks with 7,961 requests over 44,453 tools. As published, every task ranks all tools. "by-category" ranks only the
tools of the task's category (web, code or customized), like the `category` argument of ToolRet's code. With
instructions a query is `Instruct: INSTRUCTION`, a line break, `Query: REQUEST`. Without, it is the request. (For a
model that it does not know, ToolRet's code then still writes the words "Instruct:" and "Query:".)

Differences from ToolRet's code: rankings are not cut at 100, which changes none of these metrics; ties are broken by
id, like trec_eval; vectors are compared by cosine instead of the inner product.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.core.benchmark import Part, mean_over_tasks
from pplx_jax.evaluation.core.hub import Table
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask

NAMES = ("toolret", "toolret-instructions", "toolret-by-category", "toolret-by-category-instructions")
QUERIES = ("mangopy/ToolRet-Queries", "b8c76ad3349ff17497b6bdb28bb5b8f61a0f6445")
TOOLS = ("mangopy/ToolRet-Tools", "e06c38c75612b6536bd959e08cdd345894aba6a7")
METRICS = ("ndcg@10", "recall@10", "precision@10", "completeness@10", "map@10", "ndcg@5", "recall@5", "recall@100")
CATEGORIES = {
    "code": "craft-math-algebra craft-tabmwp craft-vqa gorilla-huggingface gorilla-pytorch gorilla-tensor toolink",
    "customized": (
        "appbench gpt4tools gta taskbench-huggingface taskbench-multimedia metatool tool-be-honest toolalpaca "
        "toolbench-sam"
    ),
    "web": (
        "apibank apigen mnms reversechain rotbench t-eval-dialog t-eval-step taskbench-daily toolace toolbench toolemu "
        "tooleyes toollens ultratool autotools-food autotools-music autotools-weather restgpt-spotify restgpt-tmdb"
    ),
}
CATEGORY_OF = {task: category for category, tasks in CATEGORIES.items() for task in tasks.split()}


@dataclasses.dataclass(frozen=True)
class ToolRet:
    """A `benchmark.Benchmark`."""

    name: str
    tasks: Sequence[RetrievalTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Returns nDCG@10 averaged in several ways, and the mean recall@10 and completeness@10 over tasks.

        "ndcg@10" is the mean over tasks. "ndcg@10 of queries" is the mean over all requests, which ToolRet's
        `print_results` prints. "ndcg@10 CATEGORY" is the mean over the tasks of a category, and "ndcg@10 of categories"
        the mean of those.
        """

        def mean(metric: str, category: str | None = None) -> float:
            chosen = {task: of for task, of in parts.items() if category in (None, CATEGORY_OF[task])}
            return mean_over_tasks(chosen, metric)

        by_category = {name: mean("ndcg@10", name) for name in CATEGORIES if name in map(CATEGORY_OF.get, parts)}
        all_parts = [part for of in parts.values() for part in of]
        queries = [part.metrics["ndcg@10"] * part.queries for part in all_parts]
        return {
            "ndcg@10": mean("ndcg@10"),
            **{f"ndcg@10 {category}": value for category, value in by_category.items()},
            "ndcg@10 of categories": float(np.mean(list(by_category.values()))),
            "ndcg@10 of queries": sum(queries) / sum(part.queries for part in all_parts),
            "recall@10": mean("recall@10"),
            "completeness@10": mean("completeness@10"),
        }


def open_benchmark(name: str, data: pathlib.Path | None = None) -> ToolRet:
    """Opens ToolRet.

    Args:
        name: one of `NAMES`; see the module.
        data: a folder with ToolRet-Queries/TASK/queries-*.parquet and ToolRet-Tools/CATEGORY/tools-*.parquet; None
            for the hub.
    """
    instructions, by_category = name.endswith("-instructions"), "by-category" in name
    source = _Source(data)
    tasks = [
        RetrievalTask(
            name=task,
            load=functools.partial(_load, source, task, category if by_category else None, instructions),
            revision_of=functools.partial(_revision, source, task, category if by_category else None),
            metrics=METRICS,
        )
        for task, category in CATEGORY_OF.items()
    ]
    return ToolRet(name, tasks)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the files are. Tools are read once for all tasks that share them."""

    data: pathlib.Path | None
    tools: Any = dataclasses.field(default_factory=lambda: functools.lru_cache(maxsize=1)(_read_tools))
    digest: Any = dataclasses.field(default_factory=lambda: functools.lru_cache(maxsize=None)(_digest))


def _queries(task: str) -> Table:
    return Table(QUERIES[0], task, "queries", ("id", "query", "instruction", "labels"), QUERIES[1])


def _tool_tables(category: str | None) -> list[Table]:
    chosen = CATEGORIES if category is None else (category,)
    return [Table(TOOLS[0], one, "tools", ("id", "documentation"), TOOLS[1]) for one in chosen]


def _digest(table: Table, data: pathlib.Path | None) -> str:
    return table.digest(data)


def _revision(source: _Source, task: str, category: str | None) -> str:
    return "-".join(source.digest(table, source.data) for table in [_queries(task), *_tool_tables(category)])


def _read_tools(data: pathlib.Path | None, category: str | None) -> dict[str, str]:
    """Returns tool id -> documentation."""
    tools: dict[str, str] = {}
    for table in _tool_tables(category):
        for row in table.read(data):
            if tools.setdefault(row["id"], row["documentation"]) != row["documentation"]:
                raise BadInput(f"{table.repo}: two tools have the id {row['id']!r}; download its files again")
    return tools


def _grades(row: Mapping[str, str], task: str) -> dict[str, int]:
    """Returns tool id -> relevance. Labels repeat the tools and may contain NaN, which Python's JSON parser accepts."""
    try:
        return {str(label["id"]): int(label["relevance"]) for label in json.loads(row["labels"])}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        line = f"{task}: labels of {row['id']!r} are not a JSON list of objects with id and relevance"
        raise BadInput(f"{line}; download the files again") from None


def _load(source: _Source, task: str, category: str | None, instructions: bool) -> RetrievalSet:
    tools = source.tools(source.data, category)
    ids = list(tools)
    qrels: dict[str, dict[str, int]] = {}
    texts: dict[str, str] = {}
    for row in _queries(task).read(source.data):
        grades = _grades(row, task)
        unknown = next((tool for tool in grades if tool not in tools), None)
        if unknown is not None:
            raise BadInput(
                f"{task}: {row['id']} needs the tool {unknown!r}, which is missing; download the files again"
            )
        if row["id"] in texts:
            raise BadInput(f"{task}: two requests have the id {row['id']!r}; download the files again")
        qrels[row["id"]] = grades
        texts[row["id"]] = f"Instruct: {row['instruction']}\nQuery: {row['query']}" if instructions else row["query"]
    return RetrievalSet(
        document_ids=ids,
        documents=list(tools.values()),
        parents=ids,
        chunks=[0] * len(ids),
        query_ids=list(texts),
        queries=list(texts.values()),
        qrels=qrels,
    )
