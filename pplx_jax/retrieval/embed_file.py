"""The verb `embed`: embeds a file of texts or documents. Keeps the order, resumes, and reports every skipped row.

The unit of work is a shard of rows. Processes or workers divide the shards; one of them embeds a shard alone, so its
bytes do not depend on how many there are.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.core.progress import Progress
from pplx_jax.core.prompts import DOCUMENT, with_document_prompt
from pplx_jax.data.io.input_files import input_files
from pplx_jax.inference.chunking import chunk
from pplx_jax.inference.encoder import (
    Encoder,
    check_quantization,
    document_encoder,
    document_tokens,
    tokens_over_limit,
)
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.inference.overflow import Overflow, chunks_fit
from pplx_jax.kernels.quantization import BitOrder, Quantization, check_form, quantize
from pplx_jax.parallel.processes import barrier, joins_processes
from pplx_jax.parallel.same_job import appears
from pplx_jax.parallel.shares import deal, own_share, parse_share
from pplx_jax.retrieval.embeddings.folder import MANIFEST, PROGRESS, EmbeddingFolder, Settings, Shard
from pplx_jax.retrieval.embeddings.input_rows import BadRow, InputRow, TooLongRow
from pplx_jax.retrieval.embeddings.shard_plan import ShardPlan, plan_shards

_NAMED_ROWS = 10


@joins_processes
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
    shard_size: int | None = None,
    chunk_tokens: int | None = None,
    overflow: Overflow = "error",
    overlap: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    shard: str | None = None,
    deterministic: bool = False,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Embeds every row of the input. A second call after an interruption embeds the shards that are missing.

    The processes of a job divide the missing shards. Jobs that do not know each other divide them by `shard`; the
    shards of a lost one can be embedded by another one with the same `shard`, or by a call without it. Whoever finds
    all shards finished writes the manifest.

    A row with `chunks_field` is a document: its chunks are encoded together and give one vector each. An empty text
    gives a zero vector, which is marked as empty. Rows that cannot be embedded (not JSON, no such column) are skipped,
    reported on standard error and listed in the manifest. So are rows over the model's limit with overflow="error"; the
    call then fails after all other rows are embedded.

    Args:
        model_path: a model folder, or the name of a model of the Hugging Face hub.
        input: a file (.jsonl, .jsonl.gz or .parquet), a folder of such files, or a pattern; see `input_files`.
        output: the folder to write, see `embeddings.folder`.
        text_field, chunks_field: names of the columns.
        quantization: "int8", "binary" (-1/+1), "ubinary" (packed), "tanh" or "none".
        bit_order: of "ubinary".
        dims: number of leading dimensions; None for all.
        shard_size: input rows per shard. None for shards of about equal bytes, see `embeddings.shard_plan`, or for what
            an unfinished folder has. An interruption loses the work of at most one shard per worker.
        chunk_tokens: split every text into chunks of at most this many tokens and embed it as a document of chunks.
        overflow: what happens to a text or document over the model's limit: "error" fails at the end, "split" encodes
            overlapping windows, "truncate" cuts it.
        overlap: tokens shared by the windows of "split".
        query_prompt, document_prompt: prompts in place of those of the model, "" for none. The rows are documents. A
            search of these embeddings uses the same prompts.
        shard: "I/N" embeds only share I, from 0, of N shares of about the same size; None embeds everything.
        deterministic: whether the bits of a vector depend on its own row alone, see `Embedder`; slower for short texts.
        encoder: the loaded model, if the caller has it.

    Returns:
        {"count": number of vectors, "shards", "tokens", "seconds", "skipped": number of skipped rows} of all finished
        shards. If other workers have not finished theirs, also "missing": number of shards.

    Raises:
        BadInput: `shard` is not I/N, the input or the model cannot be read, the output
            contains something else or embeddings with other settings, the model does not support the quantization or
            dims, a row is over the model's limit with overflow="error", or no row could be embedded.
    """
    files, folder_path, model_path = input_files(input), as_path(output), find_model(model_path)
    if shard_size is not None and shard_size < 1:
        raise BadInput(f"shard_size={shard_size}: give at least 1")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise BadInput(f"chunk_tokens={chunk_tokens}: give at least 1")
    index, processes = own_share()
    share = None if shard is None else parse_share(shard)
    shard_size = EmbeddingFolder.shard_size_of(folder_path) if shard_size is None else shard_size
    plan = plan_shards(files, text_field, chunks_field, shard_size)
    weights = [planned.weight for planned in plan.shards]
    given = {"query_prompt": query_prompt, "document_prompt": document_prompt}
    prompts: dict[str, Any] = {name: text for name, text in given.items() if text is not None}
    options: dict[str, Any] = prompts | ({"deterministic": True} if deterministic else {})
    encoder = encoder or load_encoder(model_path, **options)
    check_quantization(encoder, quantization)
    check_form(quantization, dims, encoder.dims, bit_order)
    settings = Settings(
        model_fingerprint=encoder.fingerprint,
        input_sha256=plan.sha256(),
        dims=encoder.dims if dims is None else dims,
        quantization=quantization,
        bit_order=bit_order,
        text_field=text_field,
        chunks_field=chunks_field,
        shard_size=shard_size,
        chunk_tokens=chunk_tokens,
        overflow=overflow,
        overlap=overlap,
        prompts=prompts,
        deterministic=deterministic,
    )
    folder = _opened_together(folder_path, settings, model_path, alone=share is None)
    wanted = range(len(weights)) if share is None else deal(weights, share[1])[share[0]]
    missing = [number for number in wanted if number not in folder.finished]
    own = [missing[place] for place in deal([weights[number] for number in missing], processes)[index]]
    _embed_shards(folder, plan, encoder, own)
    barrier("embedded")
    folder.refresh()
    if index == 0:  # shards that no process embedded, because they did not see the same ones as finished
        _embed_shards(folder, plan, encoder, wanted)
    if index == 0 and not folder.complete and len(folder.finished) == len(weights):
        folder.finish()
    barrier("embeddings finished")
    folder.refresh()
    totals = {"shards": len(folder.finished), **folder.totals()}
    if not folder.complete:
        return {**totals, "missing": len(weights) - len(folder.finished)}
    _refuse_too_long(folder, plan, str(input))
    if plan.rows and not totals["count"]:
        first = folder.shards[0].skipped[0]
        told = f"{plan.line(first['row'])}: {first['reason']}"
        raise BadInput(f"{input}: none of its {plan.rows} rows could be embedded; {told}")
    return totals


def _opened_together(path: pathlib.Path, settings: Settings, model: pathlib.Path, *, alone: bool) -> EmbeddingFolder:
    """Opens the folder on all processes, before any of them writes a shard."""
    index, _ = own_share()
    if index > 0:
        barrier("embeddings opened")
        if not any(appears(path / name) for name in (PROGRESS, MANIFEST)):
            raise BadInput(
                f"process {index} does not see what process 0 writes to {path}; give an --output that all share"
            )
    folder = EmbeddingFolder.open_for_writing(path, settings, model, alone=alone and index == 0)
    if index == 0:
        barrier("embeddings opened")
    barrier("embeddings read")
    return folder


def _embed_shards(folder: EmbeddingFolder, plan: ShardPlan, encoder: Encoder, numbers: Collection[int]) -> None:
    """Embeds those of the shards with these numbers that are not finished."""
    settings = folder.settings
    rows = {number: plan.shards[number].rows for number in numbers}
    wanted = rows.keys() - folder.finished.keys()
    if folder.complete or not wanted:
        return
    done = sum(rows[number] for number in rows.keys() - wanted)
    with Progress("embed", sum(rows.values()), unit="row", start=done, enabled=own_share()[0] == 0) as progress:
        embedded_tokens = 0
        for number, batch in plan.read(settings.text_field, settings.chunks_field, wanted):
            started = time.monotonic()
            vectors, described, tokens, skipped = _embed_rows(encoder, batch, settings)
            _report_skipped(progress, folder, plan, skipped)
            seconds = round(time.monotonic() - started, 3)
            folder.add(number, vectors, described, Shard(len(batch), len(vectors), tokens, seconds, _listed(skipped)))
            done += len(batch)
            embedded_tokens += tokens
            progress.update(done, tokens=embedded_tokens)


def _embed_rows(
    encoder: Encoder, batch: list[InputRow | BadRow], settings: Settings
) -> tuple[np.ndarray, list[dict[str, Any]], int, list[BadRow]]:
    """Returns vectors [n, width], their descriptions, the number of tokens and the skipped rows."""
    skipped = [row for row in batch if isinstance(row, BadRow)]
    good: list[InputRow] = []
    tokens = 0
    limit = encoder.config.max_length
    candidates = []
    for row in batch:
        if isinstance(row, BadRow):
            continue
        if settings.overflow == "error" and (least := tokens_over_limit(encoder, row.chunks)):
            skipped.append(TooLongRow(row.number, f"at least {least} tokens, the model takes {limit}", row.id))
        else:
            candidates.append(_chunked(row, encoder, settings.chunk_tokens))
    prompt = getattr(encoder, "prompts", {}).get(DOCUMENT, "")
    prompted = with_document_prompt([row.chunks for row in candidates], prompt)
    counts = iter(encoder.count_tokens([text for chunks in prompted for text in chunks]))
    described: list[dict[str, Any]] = []
    for row in candidates:
        lengths = list(itertools.islice(counts, len(row.chunks)))
        length = document_tokens(lengths)
        if length > limit and settings.overflow == "error":
            skipped.append(TooLongRow(row.number, f"{length} tokens, the model takes {limit}", row.id))
            continue
        if length > limit and settings.overflow == "truncate" and not chunks_fit(lengths, limit):
            reason = f"{len(lengths)} chunks, of which {limit} tokens have room for {(limit + 1) // 2}; give split"
            skipped.append(TooLongRow(row.number, reason, row.id))
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
        pooled = document_encoder(encoder)([row.chunks[0] for row in good], **options)
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


def _report_skipped(progress: Progress, folder: EmbeddingFolder, plan: ShardPlan, skipped: list[BadRow]) -> None:
    remaining = max(_NAMED_ROWS - folder.totals()["skipped"], 0)
    for row in skipped[:remaining]:
        progress.note(f"skipped {plan.where(row.number)}: {row.reason}")
    if len(skipped) > remaining:
        progress.note(f"skipped {len(skipped) - remaining} more rows, listed in {folder.path / 'manifest.json'}")


def _listed(skipped: list[BadRow]) -> list[dict[str, Any]]:
    """Returns the skipped rows for the manifest."""
    return [
        {"row": row.number, "reason": row.reason, **({"too_long": row.id} if isinstance(row, TooLongRow) else {})}
        for row in skipped
    ]


def _refuse_too_long(folder: EmbeddingFolder, plan: ShardPlan, name: str) -> None:
    rows = sum(shard.rows for shard in folder.shards)
    too_long = [row for shard in folder.shards for row in shard.skipped if "too_long" in row]
    if too_long:
        first = too_long[0]
        example = f"the first is {first['too_long']!r} in {plan.line(first['row'])} ({first['reason']})"
        raise BadInput(
            f"{name}: too long: {len(too_long)} of {rows} rows, {example}; all others are in {folder.path}; "
            "give --overflow truncate or split to embed them too"
        )
