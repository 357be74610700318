"""The verbs `data report` and `data cache`: the sources and the vocabulary of a recipe, without running it."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, write_json
from pplx_jax.data.quality.report import look_at_sources
from pplx_jax.data.quality.report_text import render_data_text
from pplx_jax.data.sources.beam_cache import cache_sources, pipeline_options
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus, corpus_overlap, corpus_sources, overlap_with
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.vocabulary import FILE_NAME, TOKENIZER, Vocabulary
from pplx_jax.reports.data_page import render_data_page
from pplx_jax.training.settings import Training


@dataclasses.dataclass(frozen=True)
class RecipeData:
    """Sources and vocabulary of a recipe.

    Attributes:
        sources: declared, or the files that the corpus wrote.
        vocabulary: of the model.
        evaluation: the folder of the evaluation set, or of several.
    """

    sources: list[Source]
    vocabulary: Vocabulary
    evaluation: pathlib.Path


def recipe_data(workdir: pathlib.Path, corpus: Any, initial: str | None, vocabulary: pathlib.Path | None) -> RecipeData:
    """Finds them, and builds the corpus in WORKDIR/data/corpus where that has not been done.

    Args:
        workdir: of the recipe.
        corpus: of the recipe.
        initial: a model folder whose vocabulary is used where `vocabulary` is None.
        vocabulary: a vocabulary file or a folder that holds one.

    Raises:
        BadInput: there is no vocabulary.
    """
    data = pathlib.Path(workdir) / "data"
    if vocabulary is None and not initial and not any((data / name).exists() for name in (FILE_NAME, TOKENIZER)):
        raise BadInput(f"no vocabulary in {data}; run the recipe first, or give --vocabulary")
    found = Vocabulary.load(vocabulary or initial or data)
    folder = data / "corpus"
    if isinstance(corpus, SourceCorpus):
        evaluation = pathlib.Path(corpus.evaluation)
    else:
        evaluation = folder / "evaluation"
        if not folder.exists():
            corpus.build(folder)
    return RecipeData(corpus_sources(corpus, folder), found, evaluation)


def cache_corpus(
    workdir: pathlib.Path,
    *,
    corpus: Any,
    lengths: Lengths,
    initial: str | None = None,
    vocabulary: pathlib.Path | None = None,
    output: str = "",
    runner: str = "DirectRunner",
    beam_options: str = "",
    seqio_records: bool = False,
) -> dict[str, Any]:
    """Writes token files of every source of a recipe: OUTPUT/STAGE/SOURCE/shard-I-of-N.

    The files are those that the recipe itself would write in one process, but for their division into shards. Stages
    that a folder had before are replaced once all are whole; others that lie there are left as they are. At a URL there
    may be none before.

    Args:
        workdir: of the recipe.
        corpus: its sources.
        lengths: token limits.
        initial: a model folder whose vocabulary is used.
        vocabulary: a vocabulary or a folder that holds one; that of `initial`, else of the workdir, where None.
        output: a folder or a URL that all workers reach; WORKDIR/data/tokens where none.
        runner: of Beam.
        beam_options: further options of the pipeline, as on a command line.
        seqio_records: keep SeqIO's own cache too, in OUTPUT/seqio: TFRecords of blocks that its tasks read with
            `use_cached=True`.

    Returns:
        `output`, and by source `examples`, `shards`, and `rows` as `BadRows.summary` gives them.

    Raises:
        BadInput: no files, no vocabulary, too many bad rows, no Beam, no such runner or option of it; the output holds
            something else.
    """
    options = pipeline_options(runner, beam_options)
    data = recipe_data(workdir, corpus, initial, vocabulary)
    target = output or str(pathlib.Path(workdir) / "data" / "tokens")
    return cache_sources(
        data.sources,
        data.vocabulary,
        lengths,
        corpus_overlap(corpus),
        target,
        options=options,
        seqio_records=seqio_records,
    )


def report_corpus(
    workdir: pathlib.Path,
    *,
    corpus: Any,
    lengths: Lengths,
    stages: Sequence[Training] = (),
    initial: str | None = None,
    vocabulary: pathlib.Path | None = None,
    output: pathlib.Path | None = None,
    examples: int = 100_000,
    samples: int = 3,
) -> dict[str, Any]:
    """Looks at the first examples of every source of a recipe, and writes OUTPUT/report.json, .html and .txt.

    Needs no TensorFlow. Token ids, cuts and packing are those of training.

    Args:
        workdir: of the recipe.
        corpus: its sources.
        lengths: token limits.
        stages: whose batches are packed, to see how full they are.
        initial: a model folder whose vocabulary is used.
        vocabulary: as in `recipe_data`.
        output: the folder to write; WORKDIR/data/report where None.
        examples: looked at of each part of a source.
        samples: shown of each, after every step.

    Returns:
        Over all sources: `examples`, `tokens`, `fill` (share of the cells of packed rows that hold a token),
        `duplicates` {exact, near}, `languages` {name: examples}, `overlap` (examples that share text with an
        evaluation set), `bad_rows`; `looked_at` (at most, of each source); `fill_by_stage`; `report`, where the page
        is; and `text`, what report.txt says: the same of every source, and more.

    Raises:
        BadInput: no files, no vocabulary, no evaluation set, too many bad rows; fewer `examples` than one.
    """
    if examples < 1 or samples < 0:
        raise BadInput(f"--examples={examples} --samples={samples}: give 1 or more examples, and 0 or more samples")
    data = recipe_data(workdir, corpus, initial, vocabulary)
    report = look_at_sources(
        data.sources,
        data.vocabulary,
        lengths,
        overlap_with(data.evaluation),
        stages=stages,
        drop_overlap=bool(getattr(corpus, "drop_overlap", False)),
        examples=examples,
        samples=samples,
    )
    folder = pathlib.Path(output or pathlib.Path(workdir) / "data" / "report")
    folder.mkdir(parents=True, exist_ok=True)
    name = pathlib.Path(workdir).name
    text = render_data_text(report, name=name)
    for file, content in {"report.html": render_data_page(report, name=name), "report.txt": text}.items():
        with atomic_path(folder / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    write_json(folder / "report.json", report)
    shown = {name: value for name, value in report.items() if name not in ("sources", "fill_by_stage")}
    fill = {stage: one["fill"] for stage, one in report["fill_by_stage"].items()}
    return {**shown, "fill_by_stage": fill, "report": str(folder / "report.html"), "text": text}
