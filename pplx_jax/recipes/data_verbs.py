"""The verbs `data report` and `data cache`: they inspect or tokenise the data of a recipe without running it."""

import pathlib
from collections.abc import Sequence
from typing import Any

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.core.buckets import local_copy, staged
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import write_json, write_text
from pplx_jax.core.paths import as_path
from pplx_jax.core.prompts import checked_prompts
from pplx_jax.data.batches.batch_spec import ContextualBatch, PairBatch, TextBatch, TripletBatch
from pplx_jax.data.quality.fill import Packed
from pplx_jax.data.quality.report import report_sources
from pplx_jax.data.quality.report_text import render_data_text
from pplx_jax.data.sources.beam_cache import cache_sources
from pplx_jax.data.sources.beam_options import pipeline_options
from pplx_jax.data.sources.corpus import Corpus
from pplx_jax.data.sources.file_source import source_of_file
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import evaluation_overlap
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.vocabulary import FILE_NAME, TOKENIZER, Vocabulary
from pplx_jax.reports.data_page import render_data_page
from pplx_jax.training.settings import Training

# Token limits and batch size for a file without a recipe.
_FILE_LENGTHS = Lengths(text=512, query=64, document=512, chunk=256, chunks=16)
_FILE_BATCH = 256


def cache_corpus(
    workdir: pathlib.Path,
    *,
    corpus: Corpus,
    lengths: Lengths,
    initial: str | None = None,
    vocabulary: pathlib.Path | None = None,
    prompts: dict[str, str] | None = None,
    output: str = "",
    runner: str = "DirectRunner",
    beam_options: str = "",
    seqio_records: bool = False,
) -> dict[str, Any]:
    """Writes the token tables of every source of a recipe: OUTPUT/KIND/SOURCE/shard-I-of-N.

    The content is that of a run in one process, divided into shards. Tables of the same kinds that OUTPUT had before
    are replaced when all new ones are complete. Other folders stay. A URL must not have tables before.

    Args:
        workdir: the workdir of the recipe.
        corpus: the corpus of the recipe.
        lengths: token limits.
        initial: a model folder whose vocabulary is used.
        vocabulary: a vocabulary, or a folder that holds one. If None, that of `initial`, else that of the workdir.
        prompts: of the recipe.
        output: a folder or a URL that all workers can reach; by default WORKDIR/data/tokens.
        runner: the Beam runner.
        beam_options: further options of the pipeline, as on a command line.
        seqio_records: whether to write SeqIO's own cache too, in OUTPUT/seqio: TFRecords of blocks, which its tasks
            read with `use_cached=True`.

    Returns:
        `output`, and by kind and source `examples`, `shards`, and `rows` as `BadRows.summary` returns them.

    Raises:
        BadInput: there are no files or no vocabulary; too many rows are bad; Beam, the runner or an option does not
            exist; or the output holds something else.
    """
    options = pipeline_options(runner, beam_options)
    found = _vocabulary(workdir, initial, vocabulary)
    sources = _prompted(corpus.training_sources(_built(workdir, corpus)), prompts)
    target = output or str(as_path(workdir) / "data" / "tokens")
    left_out = {"overlap": corpus.excluded_texts(), "duplicates": corpus.excluded_duplicates()}
    return cache_sources(
        sources, found, lengths, output=target, options=options, seqio_records=seqio_records, **left_out
    )


def report_corpus(
    workdir: pathlib.Path | None = None,
    *,
    input: str | None = None,
    text_field: str = "text",
    corpus: Corpus | None = None,
    lengths: Lengths = _FILE_LENGTHS,
    stages: Sequence[Training] = (),
    initial: str | None = None,
    vocabulary: pathlib.Path | None = None,
    prompts: dict[str, str] | None = None,
    output: pathlib.Path | None = None,
    examples: int = 100_000,
    samples: int = 3,
) -> dict[str, Any]:
    """Inspects the first examples of a recipe's sources, or of a file. Writes OUTPUT/report.json, .html and .txt.

    It needs no TensorFlow. Token ids, cuts and packing are the same as in training. A file needs no recipe: without
    one, it is packed with default lengths, and without a vocabulary its words are counted instead of tokens.

    Args:
        workdir: the workdir of the recipe.
        input: a file or a pattern of files to inspect instead of the recipe's sources, JSON lines or Parquet. Its
            columns decide its kind (`source_of_file`).
        text_field: the column of texts in `input`.
        corpus: the corpus of the recipe.
        lengths: token limits.
        stages: stages whose batches are packed, to measure their fill.
        initial: a model folder whose vocabulary is used.
        vocabulary: as in `cache_corpus`; optional for `input`.
        prompts: of the recipe; token lengths and packing count them, duplicates and overlap do not.
        output: the folder to write; by default WORKDIR/data/report. With `input`: NAME-OF-INPUT-report in the
            workdir, or in the current folder.
        examples: number of examples to inspect, of each part of a source.
        samples: number of examples to show, of each part of a source.

    Returns:
        As `report_sources`, except `sources`; also `report`, the path of the page, and `text`, the content of
        report.txt.

    Raises:
        BadInput: there is neither `input` nor a recipe; no files, no vocabulary or no evaluation set of a recipe; too
            many rows are bad; or `examples` or `samples` is too small.
    """
    if examples < 1 or samples < 0:
        raise BadInput(f"--examples={examples} --samples={samples}: give 1 or more examples, and 0 or more samples")
    limits: dict[str, Any] = {"examples": examples, "samples": samples}
    if input is not None:
        name = pathlib.PurePosixPath(input).name
        source = source_of_file(input, _source_name(name), text_field)
        found = _known_vocabulary(workdir, initial, vocabulary)
        packed = _packed(stages) if stages else {source.kind: _packed_file(source, lengths)}
        report = report_sources([source], found, lengths, None, stages=packed, **limits)
        folder = as_path(output or as_path(workdir or ".") / f"{source.name}-report")
    elif corpus is not None and workdir is not None:
        name = as_path(workdir).name
        found = _vocabulary(workdir, initial, vocabulary)
        built = _built(workdir, corpus)
        excluded = corpus.excluded_texts()
        overlap = excluded or evaluation_overlap(corpus.evaluation_folder(built))
        sources, drop = _prompted(corpus.training_sources(built), prompts), excluded is not None
        limits |= {"drop_overlap": drop, "drop_duplicates": corpus.excluded_duplicates()}
        report = report_sources(sources, found, lengths, overlap, stages=_packed(stages), **limits)
        folder = as_path(output or as_path(workdir) / "data" / "report")
    else:
        raise BadInput("data report needs --input FILE, or a recipe and its workdir (--gin_file, --workdir)")
    return _write_report(folder, report, name)


def _prompted(sources: Sequence[Source], prompts: dict[str, str] | None) -> list[Source]:
    found = checked_prompts(prompts, "run.prompts")
    return [source.with_prompts(found) for source in sources]


def _write_report(folder: pathlib.Path, report: dict[str, Any], name: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    text = render_data_text(report, name=name)
    for file, content in {"report.html": render_data_page(report, name=name), "report.txt": text}.items():
        write_text(folder / file, content)
    write_json(folder / "report.json", report)
    shown = {name: value for name, value in report.items() if name not in ("sources", "fill_by_stage")}
    fill = {stage: one["fill"] for stage, one in report["fill_by_stage"].items()}
    return {**shown, "fill_by_stage": fill, "report": str(folder / "report.html"), "text": text}


def _built(workdir: pathlib.Path, corpus: Corpus) -> pathlib.Path:
    """Returns WORKDIR/data/corpus, after building the corpus if its sources need that and it is not there."""
    folder = as_path(workdir) / "data" / "corpus"
    if corpus.sources_need_build and not folder.exists():
        with staged(folder) as written:
            corpus.build(written)
    return local_copy(folder)


def _vocabulary(workdir: pathlib.Path, initial: str | None, vocabulary: pathlib.Path | None) -> Vocabulary:
    found = _known_vocabulary(workdir, initial, vocabulary)
    if found is None:
        raise BadInput(f"no vocabulary in {as_path(workdir) / 'data'}; run the recipe first, or give --vocabulary")
    return found


def _known_vocabulary(
    workdir: pathlib.Path | None, initial: str | None, vocabulary: pathlib.Path | None
) -> Vocabulary | None:
    if vocabulary:
        return load_vocabulary(vocabulary)
    if initial:
        return load_vocabulary(find_model(initial))
    data = None if workdir is None else as_path(workdir) / "data"
    if data is None or not any((data / name).exists() for name in (FILE_NAME, TOKENIZER)):
        return None
    return load_vocabulary(data)


def _source_name(file: str) -> str:
    """Returns the name of a file without its endings, as a name that `Source` accepts."""
    stem = file.partition(".")[0].replace("*", "").strip("-_")
    return "_".join(stem.split()) or "input"


def _packed(stages: Sequence[Training]) -> dict[str, Packed]:
    return {training.stage.name: Packed(training.stage.batch, training.data) for training in stages}


def _packed_file(source: Source, lengths: Lengths) -> Packed:
    """Returns batches of default sizes for the kind of the file."""
    match source.kind:
        case "text":
            return Packed(TextBatch(_FILE_BATCH, lengths.text))
        case "pair":
            return Packed(PairBatch(_FILE_BATCH, lengths.document, slots=32))
        case "triplet":
            return Packed(TripletBatch(_FILE_BATCH, lengths.document, slots=32, negatives=source.negatives))
        case "contextual":
            document = lengths.chunks * (lengths.chunk + 1)  # a separator after each chunk
            return Packed(ContextualBatch(_FILE_BATCH, document, slots=64, chunks=lengths.chunks))
