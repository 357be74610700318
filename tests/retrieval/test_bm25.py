"""The tokenizer's cases, and BM25 against its formula."""

import math
import pathlib

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.scoring.retrieval_sets import evaluate_bm25
from pplx_jax.retrieval.bm25 import BM25, tokenize


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("read_file readFile read file", ["read", "file"] * 3),
        ("HTTPServer2Go int8", ["http", "server2", "go", "int8"]),
        ("self.d_model=3.5", ["self", "d", "model", "3", "5"]),
        ("Größe ÜBER", ["größe", "über"]),
        ("日本語 です", ["日", "本", "語", "日本", "本語", "で", "す", "です"]),
        ("JAX入門2", ["jax", "入", "門", "入門", "2"]),
        (" _ -- ", []),
    ],
)
def test_tokenize(text, terms):
    assert tokenize(text) == terms


def test_scores_follow_the_formula():
    documents = ["cat cat dog", "dog", "bird song at dawn"]
    k1, b, lengths = 0.9, 0.4, [3, 1, 4]
    mean = sum(lengths) / 3

    def weight(frequency, length, containing):
        idf = math.log(1 + (3 - containing + 0.5) / (containing + 0.5))
        return idf * frequency / (frequency + k1 * (1 - b + b * length / mean))

    expected = [
        [weight(2, 3, 1) + weight(1, 3, 2), weight(1, 1, 2), -math.inf],
        [-math.inf] * 3,
        [-math.inf, -math.inf, 2 * weight(1, 4, 1)],
    ]
    scores = BM25(documents).scores(["Cat, dog!", "unheard of", "dawn dawn"])
    # Lucene's variant leaves the constant factor k1 + 1 out.
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_collection_without_words():
    with pytest.raises(BadInput, match="no word"):
        BM25(["", "--"])


SETS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "retrieval"


@pytest.mark.skipif(not SETS.is_dir(), reason="the retrieval sets beside the project are not here")
@pytest.mark.parametrize(("name", "published"), [("chunking-evaluation", 0.734), ("arcd", 0.682)])
def test_known_figures(name, published):
    assert evaluate_bm25(SETS / name)["ndcg@10"] == pytest.approx(published, abs=0.003)
