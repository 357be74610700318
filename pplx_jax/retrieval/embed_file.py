"""The verb `embed`: embeds a file of texts or documents. Keeps the order, resumes, and reports every skipped row."""

import dataclasses
import hashlib
import itertools
import pathlib
import time
from typing import Any

import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.core.progress import Progress
from pplx_jax.inference.chunking import chunk
from pplx_jax.inference.encoder import Encoder, check_quantization, document_tokens
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.inference.overflow import Overflow
from pplx_jax.kernels.quantization import BitOrder, Quantization, check_form, quantize
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder, Settings, Shard
from pplx_jax.retrieval.embedding_input import BadRow, InputRow, TooLongRow, count_rows, read_rows

_NAMED_ROWS = 10


def embed_file(
    model_path: str | pathlib.Path,
    input: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    text_field: str = "text",
    chunks_field: str = "chunks",
    quantization: Quantization = "int8",
    bit_order: BitOrder = "big",
    dims: int | None = None,
    shard_size: int = 2048,
    chunk_tokens: int | None = None,
    overflow: Overflow = "error",
    overlap: int | None = None,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Embeds every row of a file. A second call after an interruption resumes after the finished shards.

    A row with `chunks_field` is a document: its chunks are encoded together and give one vector each. An empty text
    gives a zero vector, which is marked as empty. Rows that cannot be embedded (not JSON, no such column) are skipped,
    reported on standard error and listed in the manifest. So are rows over the model's limit with overflow="error"; the
    call then fails after all other rows are embedded.

    Args:
        model_path: a model folder.
        input: .jsonl, .jsonl.gz or .parquet.
        output: the folder to write, see `embedding_folder`.
        text_field, chunks_field: names of the columns.
        quantization: "int8", "binary" (-1/+1), "ubinary" (packed), "tanh" or "none".
        bit_order: of "ubinary".
        dims: number of leading dimensions; None for all.
        shard_size: input rows per shard. An interruption loses the work of at most one shard.
        chunk_tokens: split every text into chunks of at most this many tokens and embed it as a document of chunks.
        overflow: what happens to a text or document over the model's limit: "error" fails at the end, "split" encodes
            overlapping windows, "truncate" cuts it.
        overlap: tokens shared by the windows of "split".
        encoder: the loaded model, if the caller has it.

    Returns:
        {"count": number of vectors, "shards", "tokens", "seconds", "skipped": number of skipped rows}, including
        earlier runs.

    Raises:
        BadInput: the input or the model cannot be read, the output contains something else or embeddings with other
            settings, the model does not support the quantization or dims, a row is over the model's limit with
            overflow="error", or no row could be embedded.
    """
    source, folder_path, model_path = local_copy(as_path(input)), as_path(output), as_path(model_path)
    if shard_size < 1:
        raise BadInput(f"shard_size={shard_size}: give at least 1")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise BadInput(f"chunk_tokens={chunk_tokens}: give at least 1")
    total = count_rows(source)
    encoder = encoder or load_encoder(model_path)
    check_quantization(encoder, quantization)
    check_form(quantization, dims, encoder.dims, bit_order)
    settings = Settings(
        model_fingerprint=encoder.fingerprint,
        input_sha256=_sha256(source),
        dims=encoder.dims if dims is None else dims,
        quantization=quantization,
        bit_order=bit_order,
        text_field=text_field,
        chunks_field=chunks_field,
        shard_size=shard_size,
        chunk_tokens=chunk_tokens,
        overflow=overflow,
        overlap=overlap,
    )
    folder = EmbeddingFolder.open_for_writing(folder_path, settings, model_path)
    done = sum(shard.rows for shard in folder.shards)
    if not folder.complete:
        with Progress("embed", total, unit="row", start=done) as progress:
            remaining = read_rows(source, text_field, chunks_field, start=done)
            embedded_tokens = 0
            while batch := list(itertools.islice(remaining, shard_size)):
                started = time.monotonic()
                vectors, described, tokens, skipped = _embed_rows(encoder, batch, settings)
                _report_skipped(progress, folder, source, skipped)
                seconds = round(time.monotonic() - started, 3)
                folder.add(vectors, described, Shard(len(batch), len(vectors), tokens, seconds, _listed(skipped)))
                done += len(batch)
                embedded_tokens += tokens
                progress.update(done, tokens=embedded_tokens)
        folder.finish()
    _refuse_too_long(folder, source)
    if total and not folder.totals()["count"]:
        first = folder.shards[0].skipped[0]
        raise BadInput(f"{source}: none of its {total} rows could be embedded; line {first['row']}: {first['reason']}")
    return {"shards": len(folder.shards), **folder.totals()}


def _embed_rows(
    encoder: Encoder, batch: list[InputRow | BadRow], settings: Settings
) -> tuple[np.ndarray, list[dict[str, Any]], int, list[BadRow]]:
    """Returns vectors [n, width], their descriptions, the number of tokens and the skipped rows."""
    skipped = [row for row in batch if isinstance(row, BadRow)]
    good: list[InputRow] = []
    tokens = 0
    candidates = [_chunked(row, encoder, settings.chunk_tokens) for row in batch if isinstance(row, InputRow)]
    counts = iter(encoder.count_tokens([text for row in candidates for text in row.chunks]))
    described: list[dict[str, Any]] = []
    limit = encoder.config.max_length
    for row in candidates:
        lengths = list(itertools.islice(counts, len(row.chunks)))
        length = document_tokens(lengths)
        if length > limit and settings.overflow == "error":
            skipped.append(TooLongRow(row.number, f"{length} tokens, the model takes {limit}", row.id))
            continue
        tokens += min(length, limit) if settings.overflow == "truncate" else length
        good.append(row)
        described += [_describe(row, place, empty=size == 0) for place, size in enumerate(lengths)]
    options: dict[str, Any] = {
        "quantization": "none",
        "dims": settings.dims,
        "overflow": settings.overflow,
        "overlap": settings.overlap,
    }
    if not good:
        pooled = np.zeros((0, settings.dims), np.float32)
    elif any(row.is_document for row in good):
        pooled = np.concatenate(encoder.encode_documents([row.chunks for row in good], **options))
    else:
        pooled = encoder.encode([row.chunks[0] for row in good], **options)
    if len(pooled) != len(described):
        raise RuntimeError(f"{len(described)} texts gave {len(pooled)} vectors")
    vectors = quantize(pooled, settings.quantization, settings.bit_order)
    return vectors, described, tokens, sorted(skipped, key=lambda row: row.number)


def _chunked(row: InputRow, encoder: Encoder, tokens: int | None) -> InputRow:
    """Splits a text into a document of chunks if `tokens` is set. Documents stay unchanged."""
    if tokens is None or row.is_document:
        return row
    (text,) = row.chunks
    chunks = chunk(text, tokens, count_tokens=encoder.count_tokens) or [text]
    return dataclasses.replace(row, chunks=chunks, is_document=True, was_cut=True)


def _describe(row: InputRow, place: int, *, empty: bool) -> dict[str, Any]:
    text = row.chunks[place]
    described: dict[str, Any] = {"id": row.id, "text": text, "row": row.number, **row.metadata}
    if row.is_document:
        described |= {"id": f"{row.id}#{place}", "document": row.id, "chunk": place}
    if row.was_cut:  # the chunks concatenated are the text
        start = sum(map(len, row.chunks[:place]))
        described |= {"start": start, "end": start + len(text)}
    if empty:
        described["empty"] = True
    return described


def _report_skipped(progress: Progress, folder: EmbeddingFolder, source: pathlib.Path, skipped: list[BadRow]) -> None:
    remaining = max(_NAMED_ROWS - folder.totals()["skipped"], 0)
    for row in skipped[:remaining]:
        progress.note(f"skipped {source}, line {row.number}: {row.reason}")
    if len(skipped) > remaining:
        progress.note(f"skipped {len(skipped) - remaining} more rows, listed in {folder.path / 'manifest.json'}")


def _listed(skipped: list[BadRow]) -> list[dict[str, Any]]:
    """Returns the skipped rows for the manifest."""
    return [
        {"row": row.number, "reason": row.reason, **({"too_long": row.id} if isinstance(row, TooLongRow) else {})}
        for row in skipped
    ]


def _refuse_too_long(folder: EmbeddingFolder, source: pathlib.Path) -> None:
    rows = sum(shard.rows for shard in folder.shards)
    too_long = [row for shard in folder.shards for row in shard.skipped if "too_long" in row]
    if too_long:
        first = too_long[0]
        example = f"the first is {first['too_long']!r} in line {first['row']} ({first['reason']})"
        raise BadInput(
            f"{source}: too long: {len(too_long)} of {rows} rows, {example}; all others are in {folder.path}; "
            "give --overflow truncate or split, and another --output"
        )


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
