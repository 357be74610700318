"""What a retrieval task reports, on a set that can be ranked by hand."""

import dataclasses

import pytest
from helpers.word_encoder import WordEncoder

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask
from pplx_jax.evaluation.scoring.system import System

WORDS = [f"word{number}" for number in range(30)]
CHUNKS = RetrievalSet(
    document_ids=[f"d{number}" for number in range(30)],
    documents=WORDS,
    parents=[f"p{number // 3}" for number in range(30)],
    chunks=[number % 3 for number in range(30)],
    query_ids=["found", "half"],
    queries=["word3 word4", "word6 word6 word6 word9"],
    qrels={"found": {"d3": 1, "d4": 1}, "half": {"d6": 1, "d999": 1}},
)


def metrics(data):
    (part,) = RetrievalTask("hand", lambda: data).evaluate(System("words", WordEncoder()))
    return part.metrics


def test_chunks_are_judged_by_all_evidence_and_its_share():
    found = metrics(CHUNKS)
    assert found["recall@10"] == pytest.approx(0.75)  # both chunks of one query, one of two of the other
    assert found["completeness@10"] == found["completeness@100"] == pytest.approx(0.5)


def test_a_set_of_whole_documents_has_no_such_metrics():
    whole = dataclasses.replace(CHUNKS, parents=list(CHUNKS.document_ids), chunks=[0] * 30)
    assert not any(name.startswith("completeness") for name in metrics(whole))
