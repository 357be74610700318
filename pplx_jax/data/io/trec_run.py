"""Reads and writes TREC run files, the format of trec_eval."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.core.paths import as_path
from pplx_jax.data.io.json_lines import numbered_lines

_TAG = "pplx-jax"


def run_line(query: str, document: str, rank: int, score: float, tag: str = _TAG) -> str:
    """Returns the line of one hit, `query Q0 document rank score tag`.

    Raises:
        BadInput: an id is empty or contains white space, which a run file cannot express.
    """
    if len(query.split()) != 1 or len(document.split()) != 1:
        raise BadInput(f"a run file cannot hold the id of {query!r}, {document!r}: it is empty or contains white space")
    # Nine digits represent a float32 exactly, so ties stay ties.
    return f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"


@contextlib.contextmanager
def run_writer(
    path: str | pathlib.Path, document_ids: Sequence[str], tag: str = _TAG
) -> Iterator[Callable[[Iterable[str], np.ndarray, np.ndarray], None]]:
    """Writes a run file, which appears when the block ends without an error.

    Yields:
        add(query_ids, documents, scores): adds one ranking per query, from [Q, K] document indices and scores,
        best first. A score of -inf is not retrieved and not written.

    Raises:
        BadInput: see `run_line`.
    """

    def add(query_ids: Iterable[str], documents: np.ndarray, scores: np.ndarray) -> None:
        for query, ranked, values in zip(query_ids, documents, scores, strict=True):
            retrieved = int(np.count_nonzero(values > -np.inf))
            for rank, (document, score) in enumerate(zip(ranked[:retrieved], values, strict=False), start=1):
                file.write(run_line(query, document_ids[int(document)], rank, score, tag))

    with atomic_path(as_path(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield add


def read_run(path: str | pathlib.Path) -> dict[str, dict[str, float]]:
    """Reads a TREC run file. A name that ends in .gz is decompressed.

    Returns:
        query id -> document id -> score.

    Raises:
        BadInput: the file cannot be read, or a line is not "query Q0 document rank score tag".
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in numbered_lines(pathlib.Path(path)):
        cells = line.decode("utf-8", errors="replace").split()
        try:
            query, _, document, _, score, _ = cells
            found, value = run.setdefault(query, {}), float(score)
        except ValueError:
            raise BadInput(f'{path}, line {number}: not "query Q0 document rank score tag"; fix the line') from None
        if value != value or document in found:
            raise BadInput(f"{path}, line {number}: {document!r} occurs twice for {query!r}, or its score is NaN")
        found[document] = value
    return run
