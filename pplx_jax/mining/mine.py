"""Hard negatives: documents a model ranks high for a query, yet below its positive (arXiv 2602.11151, section 2.5)."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import require_free
from pplx_jax.data.batches.gather import Gatherer
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_hashes import token_hashes
from pplx_jax.data.tokens.token_table import TokenTable, holds_triplets
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.inference.embedder import Embedder
from pplx_jax.mining.choice import REASONS, Mining
from pplx_jax.mining.documents import Documents
from pplx_jax.mining.parts import Parts
from pplx_jax.mining.report import write_mining_report
from pplx_jax.mining.work import Work, negatives_of

_DEFAULT = Mining()


def mine_table(
    embedder: Embedder,
    table: TokenTable,
    vocabulary: Vocabulary,
    mining: Mining,
    output: pathlib.Path,
    *,
    documents: Sequence[TokenTable] = (),
    among: np.ndarray | None = None,
    shard: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Writes the triplet table of a pair table, and `report.txt` and `report.html` in it.

    The queries are the sampled pairs', and ranked are the pairs' documents and those of further tables, each text once:
    INT8 embeddings, cosine. Of the window's documents under the ceilings, K are drawn; a query that has fewer than K is
    left out, and counted. The documents of all pairs that share a query's tokens are its positives and never its
    negatives, nor are texts of the same tokens, cut as they are.

    The work goes in parts beside `output`, which are kept when it is cut off and taken up by the next call; the result
    depends on neither.

    Args:
      embedder: the model whose ranking is used.
      table: a pair table.
      vocabulary: the table's.
      mining: the choice.
      output: folder of the triplet table.
      documents: tables of any stage and the same vocabulary whose texts are ranked too (`candidates_of`), cut as the
        pairs' documents are. What answers a query in them is a positive of it.
      among: [n] rows of the table that the sample is drawn from; all where None.
      shard: (i, n) does the i-th of n shares of the parts and writes no table, so that machines that see the same
        folder share the work; a last call without it puts them together.

    Returns:
      Counts: `queries`, `left_out`, the `documents` ranked, `mean_positive_similarity`, `mean_negative_similarity`, and
      of the window's documents how many were refused, as `positives`, `above_ceiling` and `lexical`; of a shard,
      `parts`.

    Raises:
      BadInput: `output` holds something else than mined triplets; fewer documents than the window is deep, or no
        query with K negatives.
    """
    require_free(output, "token table of stage triplet", holds_triplets)
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise BadInput(f"mining: shard {shard[0]} of {shard[1]}; count shards from 0")
    rows = np.arange(table.count) if among is None else among
    chosen = _sample(rows, mining)
    work = Work(embedder, table, vocabulary, mining, chosen, documents)
    if len(work.documents) < mining.last_rank:
        raise BadInput(
            f"mining: ranks to {mining.last_rank} among {len(work.documents)} documents; mine more examples, rank "
            "more documents or lower last_rank"
        )
    parts = Parts(output.with_name(output.name + ".mining"), work.fingerprint())
    if shard is not None:
        return {"parts": work.run(parts, *shard)}
    found = [parts(negatives_of(part), dict) for part in range(work.run(parts, 0, 1))]
    kept, negatives, ranks, scores, positive = (
        np.concatenate([one[name] for one in found]) for name in ("kept", "negatives", "ranks", "scores", "positive")
    )
    if not len(kept):
        parts.remove()
        raise BadInput(
            f"mining: no query has {mining.negatives} documents of rank {mining.first_rank} to {mining.last_rank} "
            f"under {mining.ceiling} of its positive; raise the ceiling or widen the window"
        )
    counts: dict[str, Any] = {
        "queries": len(kept),
        "left_out": len(chosen) - len(kept),
        "documents": len(work.documents),
        "mean_positive_similarity": float(np.mean(positive)),
        "mean_negative_similarity": float(np.mean(scores)),
        **{reason: int(sum(one["refused"][place] for one in found)) for place, reason in enumerate(REASONS)},
    }
    _write(table, vocabulary, output, chosen, work.documents, kept, negatives)
    samples = work.samples(kept, negatives, ranks, scores, positive)
    write_mining_report(output, dataclasses.asdict(mining), counts, samples)
    parts.remove()
    return counts


def _write(
    table: TokenTable,
    vocabulary: Vocabulary,
    output: pathlib.Path,
    chosen: np.ndarray,
    documents: Documents,
    kept: np.ndarray,
    negatives: np.ndarray,
) -> None:
    """Rows of the new table: those with negatives first, then rows that only serve as negatives.

    `negatives` refers to rows of the table, so a document that is only a negative needs one too; `examples` in the
    manifest says how many rows are examples. Documents of other tables come last, and have no query.
    """
    only_negative = np.setdiff1d(negatives, kept)
    places = np.concatenate([kept, only_negative])
    row = np.full(len(documents.numbers), -1, np.int32)
    row[places] = np.arange(len(places), dtype=np.int32)
    pairs = chosen[places[places < len(chosen)]]
    texts = [documents.text(place) for place in places]
    others = texts[len(pairs) :]
    filler = np.zeros((len(only_negative), negatives.shape[1]), np.int32)
    features = {
        "query": Ragged.from_arrays([*(table["query"][pair] for pair in pairs), *([] for _ in others)]),
        "document": Ragged.from_arrays(texts),
        "document_hash": token_hashes(texts),
        "source": np.concatenate([table["source"][pairs], np.zeros(len(others), np.int32)]),
        "negatives": np.concatenate([row[negatives], filler]),
    }
    notes = {"examples": len(kept), "sources": table.manifest.get("sources", [])}
    write_table(output, "triplet", vocabulary, features, notes=notes)


def _sample(rows: np.ndarray, mining: Mining) -> np.ndarray:
    count = min(mining.examples or len(rows), len(rows))
    return np.sort(np.random.default_rng(mining.seed).choice(rows, count, replace=False))


def _sampled(tables: Sequence[TokenTable], mining: Mining) -> TokenTable:
    """The sampled pairs of several tables as one in memory."""
    counts = [table.count for table in tables]
    chosen = _sample(np.arange(sum(counts)), mining)
    ends = np.cumsum(counts)
    table = np.searchsorted(ends, chosen, side="right")
    return Gatherer(tables)(table, chosen - (ends - counts)[table])


def mine_file(
    model: pathlib.Path,
    pairs: pathlib.Path,
    output: pathlib.Path,
    mining: Mining = _DEFAULT,
    documents: Sequence[pathlib.Path] = (),
    shard: int | None = None,
    shards: int | None = None,
) -> dict[str, Any]:
    """Mines the token files of a pair stage with a model folder; see `mine_table`.

    Args:
      model: a model folder.
      pairs: one pair table, or a folder of them by source and shard, whose pairs are then mined together.
      output: folder of the triplet table.
      mining: the choice.
      documents: tables, or folders of them as of `pairs`, of any stage, whose texts are ranked too.
      shard: the share of the work that is done, of `shards`; all of it where None.
      shards: how many shares there are.

    Returns:
      As `mine_table`.

    Raises:
      BadInput: as `mine_table`; one of `shard` and `shards` without the other; no pair tables, or no
        tables of documents, of the model's vocabulary.
    """
    if (shard is None) != (shards is None):
        raise BadInput("--shard and --shards go together: --shard=0 --shards=4 does the first of four shares")
    embedder = Embedder.load(model)
    vocabulary = embedder.vocabulary
    tables = _open(pairs, vocabulary, "pair")
    table = tables[0] if len(tables) == 1 else _sampled(tables, mining)
    others = [other for folder in documents for other in _open(folder, vocabulary)]
    share = None if shard is None or shards is None else (shard, shards)
    return mine_table(embedder, table, vocabulary, mining, pathlib.Path(output), documents=others, shard=share)


def _open(folder: pathlib.Path, vocabulary: Vocabulary, kind: str | None = None) -> list[TokenTable]:
    return list(itertools.chain(*open_tables(folder, kind=kind, vocabulary=vocabulary).values()))
