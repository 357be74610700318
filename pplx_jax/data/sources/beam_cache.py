"""Tokenises a corpus that is too large for one machine.

SeqIO's Beam caching preprocesses every shard of every source on some worker, and writes one token table per shard.
Training reads these tables without TensorFlow or Beam.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import take_place
from pplx_jax.core.progress import Progress
from pplx_jax.data.io import storage
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources import seqio_tasks as tasks
from pplx_jax.data.sources.beam_failures import FailureMarker, failures_of_workers
from pplx_jax.data.sources.duplicates import Duplicates, Marks, Mode, find_duplicates, joined, shard_marks
from pplx_jax.data.sources.overlap import Overlap
from pplx_jax.data.sources.quiet_tensorflow import bad_input_through_beam, start_tensorflow
from pplx_jax.data.sources.source import Source, weighted_parts
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.table_maker import table_maker
from pplx_jax.data.tokens.token_table import MANIFEST, require_free_of_others
from pplx_jax.data.tokens.vocabulary import Vocabulary


def cache_sources(
    sources: Sequence[Source],
    vocabulary: Vocabulary,
    lengths: Lengths,
    overlap: Overlap | None,
    output: str,
    *,
    options: Any,
    seqio_records: bool = False,
    duplicates: Mode = "",
) -> dict[str, Any]:
    """Writes the token tables of every source: OUTPUT/KIND/SOURCE/shard-I-of-N.

    Args:
        sources: declared sources.
        vocabulary: the vocabulary of the model.
        lengths: token limits.
        overlap: rows that overlap with its evaluation texts are left out; None keeps all rows.
        output: a folder or a URL that all workers can reach.
        options: options of the pipeline, from `pipeline_options`.
        seqio_records: whether to write SeqIO's own cache too, in OUTPUT/seqio.
        duplicates: which duplicates are left out. A pipeline before the other one reads all shards for them.

    Returns:
        `output`, and by kind and source `examples`, `shards`, and `rows` as `BadRows.summary` returns them.

    Raises:
        BadInput: there are no files, too many rows are bad, or the output holds something else.
    """
    import apache_beam

    start_tensorflow()
    parts = {part.name: (part, weight) for part, weight in weighted_parts(sources)}
    shards = {name: part.shards() for name, (part, _) in parts.items()}
    evaluation = overlap.fingerprint if overlap else ""
    stages = {part.table_folder for part, _ in parts.values()}
    with contextlib.ExitStack() as opened:
        folder = output.rstrip("/")
        if storage.is_url(output):
            _refuse_written(folder, stages)
        else:
            folder = opened.enter_context(_new_stages(output, stages))
        shipped = opened.enter_context(_shipped(overlap, f"{folder}/overlap-{evaluation[:16]}.npz"))
        every = [part for part, _ in parts.values()]
        repeated = opened.enter_context(_duplicates(duplicates, every, shards, shipped, folder, options))
        opened.enter_context(_shard_progress(folder, sum(map(len, shards.values()))))
        failure = opened.enter_context(failures_of_workers(options))
        with bad_input_through_beam(), apache_beam.Pipeline(options=options) as pipeline:
            for name, (part, weight) in parts.items():
                left_out = (shipped, duplicates, repeated, failure)
                setup = functools.partial(_register, part, vocabulary, lengths.chunks, shards[name], *left_out)
                setup(again=True)
                place = f"{folder}/{part.table_folder}/{name}"
                write = functools.partial(
                    _write_shard,
                    place,
                    part,
                    vocabulary,
                    lengths,
                    notes={"weight": weight, "evaluation": evaluation, **tasks.notes_of(part, duplicates)},
                    shards=len(shards[name]),
                )
                records = f"{folder}/seqio" if seqio_records else ""
                _cache_part(pipeline, f"{part.table_folder}.{name}", part, setup, write, len(shards[name]), records)
        summaries = {}
        for name, (part, _) in parts.items():
            place = f"{folder}/{part.table_folder}/{name}"
            summaries.setdefault(part.table_folder, {})[name] = _summary(place, part, len(shards[name]))
    return {"output": output, **summaries}


def _cache_part(pipeline, label: str, source: Source, setup, write, shards: int, records: str) -> None:
    """Adds one source to the pipeline."""
    import apache_beam
    import seqio
    from seqio import beam_utils

    task = seqio.TaskRegistry.get(tasks.task_name(source))
    preprocess = beam_utils.PreprocessTask(task, tasks.SPLIT, setup_fn=setup, add_provenance=True)
    examples = pipeline | f"{label}: preprocess" >> preprocess | f"{label}: to numpy" >> apache_beam.Map(_numpy)
    keyed = examples | f"{label}: by shard" >> apache_beam.Map(_by_shard)
    tables = keyed | f"{label}: gather" >> apache_beam.GroupByKey()
    _ = tables | f"{label}: write table" >> apache_beam.MapTuple(write)
    if not records:
        return
    folder = f"{records}/{seqio.get_task_dir_from_name(task.name)}"
    written = [
        examples
        | f"{label}: write records"
        >> beam_utils.WriteExampleTfRecord(seqio.get_cached_tfrecord_prefix(folder, tasks.SPLIT), num_shards=shards),
        examples
        | f"{label}: info" >> beam_utils.GetInfo(shards)
        | f"{label}: write info" >> beam_utils.WriteJson(seqio.get_cached_info_path(folder, tasks.SPLIT)),
        examples
        | f"{label}: stats" >> beam_utils.GetStats(task.output_features)
        | f"{label}: write stats" >> beam_utils.WriteJson(seqio.get_cached_stats_path(folder, tasks.SPLIT)),
    ]
    nothing = written | f"{label}: all" >> apache_beam.Flatten() | f"{label}: none" >> apache_beam.Filter(_never)
    done = apache_beam.io.WriteToText(f"{folder}/COMPLETED", num_shards=1, shard_name_template="")
    _ = nothing | f"{label}: completed" >> done


@contextlib.contextmanager
def _new_stages(target: str, stages: Iterable[str]) -> Iterator[str]:
    """Yields an empty folder, whose folders are moved into `target` when the block ends without an error.

    Raises:
        BadInput: the target, or the folder of a kind in it, holds files that are not token tables.
    """
    output = pathlib.Path(target).resolve()
    for folder in (output, *(output / stage for stage in stages)):
        require_free_of_others(folder)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    partial.mkdir(parents=True)
    try:
        yield str(partial)
        output.mkdir(exist_ok=True)
        for folder in partial.iterdir():
            take_place(folder, output / folder.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_written(url: str, stages: Iterable[str]) -> None:
    """Refuses a URL that has tables. It has no renames, so old tables would be mixed with new ones.

    Raises:
        BadInput: the folder of a kind exists.
    """
    if there := [stage for stage in sorted(stages) if storage.exists(f"{url}/{stage}")]:
        raise BadInput(f"{url}/{there[0]} exists already; delete it, or give another --output")


def _never(_: Any) -> bool:
    return False


@contextlib.contextmanager
def _shipped(overlap: Overlap | None, path: str) -> Iterator[str]:
    """Writes the overlap test for the workers, which have no evaluation set, and yields its path; "" for None."""
    if overlap is None:
        yield ""
        return
    storage.write_bytes(path, overlap.to_bytes())
    try:
        yield path
    finally:
        storage.remove(path)


@functools.lru_cache(maxsize=1)
def _received(path: str) -> Overlap:
    with storage.open_bytes(path) as file:
        return Overlap.from_bytes(file.read())


@contextlib.contextmanager
def _duplicates(
    mode: Mode,
    parts: Sequence[Source],
    shards: Mapping[str, Sequence[str]],
    shipped: str,
    folder: str,
    options: Any,
) -> Iterator[str]:
    """Finds the duplicates, and yields the folder with those of each shard for the workers; "" if none are left out.

    Workers compute the marks of the shards. This process compares them.
    """
    if not mode:
        yield ""
        return
    import apache_beam

    place = f"{folder}/duplicates"

    def marks(part: Source, shard: str) -> list[Marks]:
        with storage.open_bytes(f"{place}/{part.name}/{shards[part.name].index(shard)}.npz") as file:
            return [Marks(**np.load(io.BytesIO(file.read()), allow_pickle=False))]

    try:
        work = [(part, shard, number) for part in parts for number, shard in enumerate(shards[part.name])]
        with contextlib.ExitStack() as opened:
            failure = opened.enter_context(failures_of_workers(options))
            opened.enter_context(bad_input_through_beam())
            pipeline = opened.enter_context(apache_beam.Pipeline(options=options))
            spread = pipeline | "shards" >> apache_beam.Create(work) | "spread" >> apache_beam.Reshuffle()
            _ = spread | "marks" >> apache_beam.MapTuple(functools.partial(_mark_shard, place, mode, shipped, failure))
        for (name, shard), found in find_duplicates(parts, mode, None, shards=shards, marks=marks).items():
            file = io.BytesIO()
            np.save(file, found)
            storage.write_bytes(f"{place}/{name}/{shards[name].index(shard)}.npy", file.getvalue())
        yield place
    finally:
        storage.remove_folder(place)


def _mark_shard(
    place: str, mode: Mode, shipped: str, failure: FailureMarker, part: Source, shard: str, number: int
) -> None:
    """Writes the marks of one shard."""
    bad = BadRows(part.name, part.max_bad_share)
    drop = _received(shipped).of if shipped else None
    marks = joined(list(failure.watch(shard_marks(part, shard, bad, mode, drop))))
    file = io.BytesIO()
    np.savez(file, **marks._asdict())
    storage.write_bytes(f"{place}/{part.name}/{number}.npz", file.getvalue())


def _of_shard(place: str, shards: Sequence[str], name: str, shard: str) -> np.ndarray:
    with storage.open_bytes(f"{place}/{name}/{shards.index(shard)}.npy") as file:
        return np.load(io.BytesIO(file.read()), allow_pickle=False)


def _register(
    source: Source,
    vocabulary: Vocabulary,
    max_chunks: int,
    shards: Sequence[str],
    shipped: str,
    mode: Mode,
    repeated: str,
    failure: FailureMarker,
    again: bool = False,
) -> None:
    """Registers the task with SeqIO on this worker."""
    import seqio

    name = tasks.task_name(source)
    if name in seqio.TaskRegistry.names():
        if not again:
            return
        seqio.TaskRegistry.remove(name)
    drop = _received(shipped).of if shipped else None
    duplicates = Duplicates(mode, functools.partial(_of_shard, repeated, shards)) if mode else None
    options = {"max_chunks": max_chunks, "drop": drop, "duplicates": duplicates, "failure": failure}
    task = tasks.source_task(source, vocabulary, shards=shards, **options)
    seqio.TaskRegistry.add_provider(name, task)


def _numpy(example: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in example.items()}


def _by_shard(example: Mapping[str, Any]) -> tuple[int, tuple[int, dict[str, np.ndarray]]]:
    """Returns (shard, (index within it, block))."""
    from seqio import beam_utils

    block = {name: value for name, value in example.items() if name not in beam_utils.PROVENANCE_KEYS}
    place = example[beam_utils.ID_WITHIN_SHARD_PROVENANCE_KEY]
    return example[beam_utils.SOURCE_SHARD_ID_PROVENANCE_KEY], (place, block)


def _write_shard(
    folder: str,
    source: Source,
    vocabulary: Vocabulary,
    lengths: Lengths,
    shard: int,
    placed: Sequence[tuple[int, Mapping[str, np.ndarray]]],
    *,
    notes: Mapping[str, Any],
    shards: int,
) -> str:
    """Writes the token table of one shard, and returns its place. `notes` are entries of its manifest."""
    place = f"{folder}/{_shard_name(shard, shards)}"
    bad = BadRows(source.name, 1.0)  # the share is checked over all shards
    with tempfile.TemporaryDirectory() as temporary:
        local = pathlib.Path(temporary) / "table" if storage.is_url(place) else pathlib.Path(place)
        with table_maker(local, source.kind, vocabulary, lengths, allow_empty=True) as maker:
            for _, flat in sorted(placed, key=lambda pair: pair[0]):
                block = tasks.ragged_block(source, flat)
                blocks.count_rows(block, bad)
                if len(block["language"]):
                    maker.add(block)
            maker.note(rows=bad.summary(), **notes)
        if storage.is_url(place):
            storage.upload(local, place)
    return place


def _shard_name(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}"


def _summary(folder: str, source: Source, shards: int) -> dict[str, Any]:
    """Sums the manifests of all shards of a source.

    Raises:
        BadInput: too many rows of the source are bad, or no example is left.
    """
    bad, examples = BadRows(source.name, source.max_bad_share), 0
    for shard in range(shards):
        manifest_path = f"{folder}/{_shard_name(shard, shards)}/{MANIFEST}"
        with storage.open_bytes(manifest_path) as file:
            manifest = json.load(file)
        bad.add(manifest["rows"])
        examples += manifest.get("examples", manifest["count"])
    bad.finish()
    if not examples:
        raise BadInput(f"{source.location()}: no example is left to tokenise; give a larger corpus")
    return {"examples": examples, "shards": shards, "rows": bad.summary()}


@contextlib.contextmanager
def _shard_progress(folder: str, shards: int) -> Iterator[None]:
    """Shows the number of complete tables, counted every two seconds. Beam itself shows nothing."""
    done = threading.Event()
    with Progress("data cache", total=shards, unit="shard") as progress:

        def count_tables() -> None:
            while not done.wait(2.0):
                if not storage.is_url(folder):
                    progress.update(sum(1 for _ in pathlib.Path(folder).glob(f"*/*/shard-*/{MANIFEST}")))

        thread = threading.Thread(target=count_tables, name="pplx_jax-cache-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        progress.update(shards)
