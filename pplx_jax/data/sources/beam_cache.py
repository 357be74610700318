"""Token files of a corpus past one machine: SeqIO's Beam caching preprocesses each shard of each source somewhere, and
a token table comes out for every shard. Training reads them as they are, without TensorFlow or Beam.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pathlib
import pickle
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.native_logs import silent_native_stderr
from pplx_jax.core.output_folder import take_place
from pplx_jax.core.progress import Progress
from pplx_jax.data.io import storage
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources import seqio_tasks as tasks
from pplx_jax.data.sources.overlap import Overlap
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
) -> dict[str, Any]:
    """Writes token tables of every source: OUTPUT/STAGE/SOURCE/shard-I-of-N.

    Args:
        sources: declared sources.
        vocabulary: of the model.
        lengths: token limits.
        overlap: evaluation texts whose rows are left out; None keeps all rows.
        output: a folder or a URL that all workers reach.
        options: of the pipeline, from `pipeline_options`.
        seqio_records: keep SeqIO's own cache too, in OUTPUT/seqio.

    Returns:
        `output`, and by source `examples`, `shards`, and `rows` as `BadRows.summary` gives them.

    Raises:
        BadInput: no files, too many bad rows; the output holds something else.
    """
    import apache_beam

    tasks.start_tensorflow()
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
        opened.enter_context(_shard_progress(folder, sum(map(len, shards.values()))))
        shipped = opened.enter_context(_shipped(overlap, f"{folder}/overlap-{evaluation[:16]}.pickle"))
        with _bad_input(), apache_beam.Pipeline(options=options) as pipeline:
            for name, (part, weight) in parts.items():
                setup = functools.partial(_register, part, vocabulary, lengths.chunks, shards[name], shipped)
                setup(again=True)
                place = f"{folder}/{part.table_folder}/{name}"
                write = functools.partial(
                    _write_shard,
                    place,
                    part,
                    vocabulary,
                    lengths,
                    notes={"weight": weight, "evaluation": evaluation},
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


def pipeline_options(runner: str, beam_options: str) -> Any:
    """Beam's options.

    Raises:
        BadInput: Beam is not installed, it has no such runner, or an option has no such value.
    """
    try:
        with silent_native_stderr():
            from apache_beam.options.pipeline_options import PipelineOptions
            from apache_beam.runners.runner import create_runner
    except ImportError:
        raise BadInput("data cache needs apache_beam, which is not installed: pip install 'pplx-jax[data]'") from None

    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise BadInput(f"--runner={runner}: {str(error).splitlines()[0].rstrip('.')}; name such a runner") from None
    complaint = io.StringIO()  # argparse's, at the end of its page of usage
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions([f"--runner={runner}", *shlex.split(beam_options)])
            options.get_all_options()
    except (SystemExit, ValueError) as error:
        reason = (complaint.getvalue().splitlines() or [str(error)])[-1].rpartition("error: ")[2]
        raise BadInput(f"--beam_options={beam_options}: {reason}; give options of Beam's {runner}") from None
    return options


@contextlib.contextmanager
def _new_stages(target: str, stages: Iterable[str]) -> Iterator[str]:
    """Gives an empty folder, whose folders take their places in `target` when the block ends without an error.

    Raises:
        BadInput: the target, or one of its stages, holds files and no token table.
    """
    output = pathlib.Path(target).resolve()
    for folder in (output, *(output / stage for stage in stages)):
        require_free_of_others(folder)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        yield str(partial)
        output.mkdir(exist_ok=True)
        for folder in partial.iterdir():
            take_place(folder, output / folder.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_written(url: str, stages: Iterable[str]) -> None:
    """A URL has no renames, so tables of an earlier run would be mixed with those of this one.

    Raises:
        BadInput: there is such a stage.
    """
    if there := [stage for stage in sorted(stages) if storage.exists(f"{url}/{stage}")]:
        raise BadInput(f"{url}/{there[0]} exists, of an earlier run; delete it, or give another --output")


@contextlib.contextmanager
def _bad_input() -> Iterator[None]:
    """BadInput as it was raised, out of what TensorFlow and Beam wrap it in: text alone crosses their borders."""
    try:
        yield
    except Exception as error:
        if found := re.search(r"BadInput: (.+)", str(error)):
            raise BadInput(found[1].strip()) from None
        raise


def _never(_: Any) -> bool:
    return False


@contextlib.contextmanager
def _shipped(overlap: Overlap | None, path: str) -> Iterator[str]:
    """Writes what the workers, which have no evaluation set, must leave out; "" where that is nothing."""
    if overlap is None:
        yield ""
        return
    storage.write_bytes(path, pickle.dumps(overlap))
    try:
        yield path
    finally:
        storage.remove(path)


@functools.lru_cache(maxsize=1)
def _received(path: str) -> Overlap:
    with storage.open_bytes(path) as file:
        return pickle.load(file)


def _register(
    source: Source, vocabulary: Vocabulary, max_chunks: int, shards: Sequence[str], shipped: str, again: bool = False
) -> None:
    """Makes the task known to SeqIO, on whichever machine this runs."""
    import seqio

    name = tasks.task_name(source)
    if name in seqio.TaskRegistry.names():
        if not again:
            return
        seqio.TaskRegistry.remove(name)
    drop = _received(shipped).of if shipped else None
    task = tasks.source_task(source, vocabulary, shards=shards, max_chunks=max_chunks, drop=drop)
    seqio.TaskRegistry.add_provider(name, task)


def _numpy(example: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in example.items()}


def _by_shard(example: Mapping[str, Any]) -> tuple[int, tuple[int, dict[str, np.ndarray]]]:
    """(shard, (place within it, block))."""
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
    """The token table of one shard, at its place only once it is whole; `notes` go into its manifest."""
    place = f"{folder}/{_shard_name(shard, shards)}"
    bad = BadRows(source.name, 1.0)  # judged over all shards
    with tempfile.TemporaryDirectory() as temporary:
        local = pathlib.Path(temporary) / "table" if storage.is_url(place) else pathlib.Path(place)
        with table_maker(local, source.kind, vocabulary, lengths, allow_empty=True) as maker:
            for _, flat in sorted(placed, key=lambda pair: pair[0]):
                block = tasks.ragged_block(source.kind, flat)
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
    """What the tables of all shards of a source say together.

    Raises:
        BadInput: too many rows of the source were bad, or no example is left.
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
    """Shows how many tables there are, looked at now and then: Beam itself says nothing."""
    done = threading.Event()
    with Progress("data cache", total=shards, unit="shard") as progress:

        def look() -> None:
            while not done.wait(2.0):
                if not storage.is_url(folder):
                    progress.update(sum(1 for _ in pathlib.Path(folder).glob(f"*/*/shard-*/{MANIFEST}")))

        thread = threading.Thread(target=look, name="pplx_jax-cache-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        progress.update(shards)
