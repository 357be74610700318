"""Hard negatives: documents that a model ranks high, but below the positive (arXiv 2602.11151, section 2.5)."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import require_free
from pplx_jax.core.paths import as_path
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
from pplx_jax.parallel.processes import barrier, joins_processes
from pplx_jax.parallel.shares import own_share, parse_share

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
    """Writes the triplet table of a pair table, with `report.txt` and `report.html` in its folder.

    For each query of the sampled pairs, the documents of the pairs and of other tables are ranked by the cosine of INT8
    embeddings, each text once. K negatives are drawn from the documents in the window and under the ceiling. Queries
    with fewer than K such documents are left out and counted. The documents of all pairs with the same query tokens are
    positives and never negatives. So are texts with the same tokens after cutting.

    The work is divided into parts in a folder next to `output`. After an interruption, the next call resumes with them.
    The processes of a job divide the parts, and process 0 writes the table. The result does not depend on this.

    Args:
      embedder: the model that ranks.
      table: a pair table.
      vocabulary: of the table.
      mining: the rule.
      output: folder of the triplet table.
      documents: tables of any stage with the same vocabulary whose texts are ranked too (see `candidates_of`), cut like
        the documents of the pairs. Their answers to a query are positives.
      among: [n] rows of the table to sample from; None for all.
      shard: (i, n) computes only the i-th of n shares of the parts and writes no table. So machines with a shared
        folder can divide the work. A last call without it collects the parts.

    Returns:
      `queries`, `left_out`, number of ranked `documents`, `mean_positive_similarity`, `mean_negative_similarity`, and
      the numbers of refused documents in the window, `positives` and `above_ceiling`. For a shard, and on processes
      other than 0, `parts`.

    Raises:
      BadInput: `output` contains something other than mined triplets, there are fewer documents than `last_rank`, or no
        query has K negatives.
    """
    require_free(output, "token table of stage triplet", holds_triplets)
    if shard is not None and own_share()[1] > 1:
        raise BadInput("shard is for workers that do not know each other; several processes divide the work themselves")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise BadInput(f"mining: shard {shard[0]} of {shard[1]} does not exist; count shards from 0")
    rows = np.arange(table.count) if among is None else among
    chosen = _sample(rows, mining)
    work = Work(embedder, table, vocabulary, mining, chosen, documents)
    if len(work.documents) < mining.last_rank:
        raise BadInput(
            f"mining: last_rank={mining.last_rank} exceeds the {len(work.documents)} documents; mine more examples, "
            "rank more documents or lower last_rank"
        )
    parts = Parts(output.with_name(output.name + ".mining"), work.fingerprint())
    if shard is not None:
        return {"parts": work.run(parts, *shard)}
    index, processes = own_share()
    own = work.run(parts, index, processes, wait=lambda: barrier("mine: documents"))
    barrier("mine: queries")
    result = _collect(work, parts, table, vocabulary, mining, chosen, output) if index == 0 else {"parts": own}
    barrier("mine: table")
    return result


def _collect(
    work: Work,
    parts: Parts,
    table: TokenTable,
    vocabulary: Vocabulary,
    mining: Mining,
    chosen: np.ndarray,
    output: pathlib.Path,
) -> dict[str, Any]:
    """Writes the table and the reports from all parts, removes the parts, and returns the counts of `mine_table`."""
    found = [parts(negatives_of(part), dict) for part in range(work.run(parts, 0, 1))]
    kept, negatives, ranks, scores, positive = (
        np.concatenate([one[name] for one in found]) for name in ("kept", "negatives", "ranks", "scores", "positive")
    )
    if not len(kept):
        parts.remove()
        raise BadInput(
            f"mining: no query has {mining.negatives} documents in ranks {mining.first_rank} to {mining.last_rank} "
            f"below {mining.ceiling} of its positive; raise the ceiling or widen the window"
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
    """Writes the rows of the new table: first those with negatives, then those that are only negatives.

    The column `negatives` has row numbers, so a document that is only a negative needs a row too. `examples` in the
    manifest is the number of rows with negatives. Documents of other tables come last and have no query.
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
    """Returns the sampled pairs of several tables as one table in memory."""
    counts = [table.count for table in tables]
    chosen = _sample(np.arange(sum(counts)), mining)
    ends = np.cumsum(counts)
    table = np.searchsorted(ends, chosen, side="right")
    return Gatherer(tables)(table, chosen - (ends - counts)[table])


@joins_processes
def mine_file(
    model: pathlib.Path,
    pairs: pathlib.Path,
    output: pathlib.Path,
    mining: Mining = _DEFAULT,
    documents: Sequence[pathlib.Path] = (),
    shard: str | None = None,
) -> dict[str, Any]:
    """The verb `mine`: mines the token files of a pair stage with a model folder; see `mine_table`.

    Args:
      model: a model folder.
      pairs: a pair table, or a folder of pair tables by source and shard, which are mined together.
      output: folder of the triplet table.
      mining: the rule.
      documents: tables of any stage, or folders of them, whose texts are ranked too.
      shard: "I/N" does only share I of the work, from 0, of N shares; None for all.

    Returns:
      See `mine_table`.

    Raises:
      BadInput: as in `mine_table`; `shard` is not I/N; or there are no pair tables or no document tables with the
        model's vocabulary.
    """
    share = None if shard is None else parse_share(shard)
    embedder = Embedder.load(model)
    vocabulary = embedder.vocabulary
    tables = _open(pairs, vocabulary, "pair")
    table = tables[0] if len(tables) == 1 else _sampled(tables, mining)
    others = [other for folder in documents for other in _open(folder, vocabulary)]
    return mine_table(embedder, table, vocabulary, mining, as_path(output), documents=others, shard=share)


def _open(folder: pathlib.Path, vocabulary: Vocabulary, kind: str | None = None) -> list[TokenTable]:
    return list(itertools.chain(*open_tables(folder, kind=kind, vocabulary=vocabulary).values()))
