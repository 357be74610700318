"""Hard negatives: documents a model ranks high for a query, yet below its positive (arXiv 2602.11151, section 2.5)."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.contrastive.similarity import normalize
from pplx_jax.data.token_files import Ragged, TokenTable, write_table
from pplx_jax.data.vocabulary import Vocabulary
from pplx_jax.errors import BadInput
from pplx_jax.models.embedder import Embedder
from pplx_jax.models.quantization import to_int8
from pplx_jax.progress import Progress

_QUERIES_PER_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Mining:
    """Which documents become the hard negatives of a query. The paper publishes none of this; see the README.

    Attributes:
      negatives: K, of each query.
      first_rank: documents ranked before it (from 1) are left alone: many answer the query as well.
      last_rank: the end of the window, this rank included.
      ceiling: a negative's cosine is at most this share of the positive's.
      examples: pairs that are mined, a seeded sample; 0 for all.
      seed: of the sample and of the choice within the window.
    """

    negatives: int = 7
    first_rank: int = 30
    last_rank: int = 100
    ceiling: float = 0.95
    examples: int = 0
    seed: int = 0


def mine_table(
    embedder: Embedder,
    table: TokenTable,
    vocabulary: Vocabulary,
    mining: Mining,
    output: pathlib.Path,
    *,
    among: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes the triplet table of a pair table.

    Queries and documents are the sampled pairs themselves: INT8 embeddings, exact cosine, all documents ranked for
    each query. Of the window's documents under the ceiling, K are drawn; a query that has fewer than K is left out,
    and counted. Copies of the positive (equal hash) never become negatives.

    Args:
      embedder: the model whose ranking is used.
      table: a pair table.
      vocabulary: the table's.
      mining: the choice.
      output: folder of the triplet table.
      among: [n] rows of the table that the sample is drawn from; all where None.

    Returns:
      Counts: `queries`, `left_out`, `mean_positive_similarity`, `mean_negative_similarity`.

    Raises:
      BadInput: fewer documents than the window is deep, or no query with K negatives.
    """
    generator = np.random.default_rng(mining.seed)
    rows = np.arange(table.count) if among is None else among
    count = min(mining.examples or len(rows), len(rows))
    chosen = np.sort(generator.choice(rows, count, replace=False))
    if count < mining.last_rank:
        raise BadInput(
            f"mining: ranks to {mining.last_rank} among {count} documents; mine more examples or lower last_rank"
        )
    queries, documents = table["query"], table["document"]
    hashes = np.asarray(table["document_hash"])[chosen]
    with Progress("mine: encode", total=2 * count, unit="text") as progress:
        query_vectors = embedder.encode_tokens([queries[i] for i in chosen])
        progress.update(count)
        document_vectors = embedder.encode_tokens([documents[i] for i in chosen])
        progress.update(2 * count)
    query_units = normalize(to_int8(jnp.asarray(query_vectors)))
    document_units = normalize(to_int8(jnp.asarray(document_vectors)))

    @jax.jit
    def rank(block):
        scores, places = jax.lax.top_k(block @ document_units.T, mining.last_rank)
        return scores, places

    kept, negatives, positive_sum, negative_sum = [], [], 0.0, 0.0
    with Progress("mine: rank", total=count, unit="query") as progress:
        for start in range(0, count, _QUERIES_PER_BLOCK):
            block = query_units[start : start + _QUERIES_PER_BLOCK]
            scores, places = (np.asarray(x) for x in rank(block))
            positives = np.asarray(jnp.sum(block * document_units[start : start + len(block)], axis=1))
            window = slice(mining.first_rank - 1, mining.last_rank)
            for row in range(len(block)):
                candidates = places[row, window]
                positive = positives[row]
                # Below zero the share is turned over: the ceiling stays under the positive.
                allowed = scores[row, window] <= (
                    positive * mining.ceiling if positive >= 0 else positive / mining.ceiling
                )
                allowed &= hashes[candidates] != hashes[start + row]
                candidates = candidates[allowed]
                if len(candidates) < mining.negatives:
                    continue
                drawn = generator.choice(candidates, mining.negatives, replace=False)
                kept.append(start + row)
                negatives.append(drawn)
                positive_sum += positives[row]
                negative_sum += float(query_units[start + row] @ document_units[drawn].mean(axis=0))
            progress.update(start + len(block))
    if not kept:
        raise BadInput(
            f"mining: no query has {mining.negatives} documents of rank {mining.first_rank} to {mining.last_rank} "
            f"under {mining.ceiling} of its positive; raise the ceiling or widen the window"
        )
    _write(table, vocabulary, output, chosen, np.array(kept), np.stack(negatives))
    return {
        "queries": len(kept),
        "left_out": count - len(kept),
        "mean_positive_similarity": float(positive_sum / len(kept)),
        "mean_negative_similarity": float(negative_sum / len(kept)),
    }


def _write(table, vocabulary, output, chosen: np.ndarray, kept: np.ndarray, negatives: np.ndarray) -> None:
    """Rows of the new table: those with negatives first, then rows that only serve as negatives.

    `negatives` refers to rows of the table, so a document that is only a negative needs one too; `examples` in the
    manifest says how many rows are examples.
    """
    only_negative = np.setdiff1d(negatives, kept)
    rows = np.concatenate([kept, only_negative])
    place = np.full(len(chosen), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    source_rows = chosen[rows]
    filler = np.zeros((len(only_negative), negatives.shape[1]), np.int32)
    features = {
        "query": Ragged.from_arrays([table["query"][i] for i in source_rows]),
        "document": Ragged.from_arrays([table["document"][i] for i in source_rows]),
        "document_hash": np.asarray(table["document_hash"])[source_rows],
        "source": np.asarray(table["source"])[source_rows],
        "negatives": np.concatenate([place[negatives], filler]),
    }
    notes = {"examples": len(kept), "sources": table.manifest.get("sources", [])}
    write_table(output, "triplet", vocabulary, features, notes=notes)


_DEFAULT = Mining()


def mine_file(
    model: pathlib.Path, pairs: pathlib.Path, output: pathlib.Path, mining: Mining = _DEFAULT
) -> dict[str, Any]:
    """Mines the token files of a pair stage with a model folder; see `mine_table`."""
    embedder = Embedder.load(model)
    table = TokenTable.open(pairs, vocabulary=embedder.vocabulary)
    return mine_table(embedder, table, embedder.vocabulary, mining, pathlib.Path(output))
