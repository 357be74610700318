"""The phases of a run, each done once, and the work of all phases except training."""

import contextlib
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.model_folder import Kind, load_model
from pplx_jax.core.buckets import local_copy, remove, staged
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.output_folder import take_place
from pplx_jax.core.paths import as_path, is_bucket
from pplx_jax.core.resume_check import require_same
from pplx_jax.core.sole_owner import sole_owner
from pplx_jax.data.batches.examples import Examples
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.sources.corpus import Corpus
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.token_table import MANIFEST
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.evaluation.scoring.retrieval_evaluator import RetrievalEvaluator, read_evaluation_sets
from pplx_jax.evaluation.scoring.retrieval_sets import read_probes, read_sets, score_bm25, score_model
from pplx_jax.inference.embedder import Embedder
from pplx_jax.inference.lead import lead
from pplx_jax.mining.choice import Mining
from pplx_jax.mining.mine import mine_table
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.processes import at, barrier, is_first
from pplx_jax.parallel.same_job import appears
from pplx_jax.training.settings import Training


class Phases:
    """Runs phases by name. The result of each is saved in WORKDIR/phases/NAME.json with its seconds and settings.

    The first process runs a phase and the others wait, however long it takes. All processes run a phase of `everyone`:
    a training, or one that encodes on all devices.

    Args:
      workdir: the workdir of the run.
      settings: by phase, the settings that its result depends on, besides those of the phases before it.
    """

    def __init__(self, workdir: pathlib.Path, settings: Mapping[str, Mapping[str, Any]]):
        self._workdir, self._settings = workdir, settings
        self._folder = workdir / "phases"
        self.seconds: dict[str, float] = {}

    def require_same(self) -> None:
        """Compares the settings of the finished phases with those of this start, so that a difference is found at once.

        Raises:
          BadInput: they differ; the message names the phase, the settings, and what to remove to run it again.
        """
        done = {path.stem: read_json(path) for path in self._folder.glob("*.json")}
        for name, phase in sorted(done.items(), key=lambda item: _place(item[1])):
            after = {other: each for other, each in done.items() if _place(each) >= _place(phase)}
            outputs = {self._workdir / output for each in after.values() for output in each.get("writes", ())}
            remove = [
                *(self._folder / f"{other}.json" for other in after),
                *filter(lambda path: path.exists(), outputs),
            ]
            fix = f"; or remove {' '.join(map(str, sorted(remove)))} to run {name} and what follows it again"
            found, wanted = phase.get("settings", {}), self._settings.get(name, {})
            require_same(self._workdir, f"the finished phase {name}", found, wanted, fix)

    def remains(self, name: str) -> bool:
        """Returns whether the phase is still to be done."""
        return not (self._folder / f"{name}.json").exists()

    def __call__(self, name: str, work: Callable[[], Any], everyone: bool = False, writes: Sequence[str] = ()) -> Any:
        """Returns the result of `work`, or the result that an earlier start of the run saved.

        Args:
          name: of the phase.
          work: does it, and returns what JSON can hold.
          everyone: whether all processes call `work`.
          writes: files and folders in the workdir that `work` writes.

        Raises:
          BadInput: another process does a phase of this workdir.
        """
        at(f"phase {name}")
        marker = self._folder / f"{name}.json"
        if not marker.exists() and (everyone or is_first()):
            logging.info("phase: %s", name)
            started = time.monotonic()
            with contextlib.ExitStack() as stack:
                if is_first():
                    self._workdir.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(sole_owner(self._workdir))
                result = work()
            # A stage that was interrupted counts the seconds of its earlier starts; other phases start again.
            total = result.get("seconds") if isinstance(result, Mapping) else None
            if is_first():
                seconds = time.monotonic() - started if total is None else total
                self._folder.mkdir(parents=True, exist_ok=True)
                about = {"settings": self._settings.get(name, {}), "writes": writes}
                place = len([*self._folder.glob("*.json")])  # in the order of the run
                write_json(marker, {"seconds": seconds, "result": result, "place": place, **about})
        barrier(f"phase {name}")
        appears(marker)
        done = read_json(marker)
        self.seconds[name] = done["seconds"]
        return done["result"]


def _place(phase: Mapping[str, Any]) -> int:
    return phase.get("place", -1)


def tables_folder(workdir: pathlib.Path, kind: str) -> pathlib.Path:
    """Returns the folder of the token tables of one kind of examples."""
    return workdir / "data" / "tokens" / FOLDERS[kind]


def build(workdir: pathlib.Path, corpus: Corpus) -> dict[str, Any]:
    """Writes WORKDIR/data/corpus. A corpus writes to this machine, whatever the workdir is."""
    with staged(workdir / "data" / "corpus") as folder:
        return dict(corpus.build(folder))


def tokenize(
    workdir: pathlib.Path, corpus: Corpus, vocabulary: Vocabulary, lengths: Lengths, prompts: Mapping[str, str]
) -> dict[str, Any]:
    """Writes WORKDIR/data/tokens from WORKDIR/data/corpus."""
    written = local_copy(workdir / "data" / "corpus")
    with staged(workdir / "data" / "tokens", last=MANIFEST) as folder:
        more = {"prompts": prompts} if prompts else {}
        return corpus.tokenize(written, vocabulary, folder, lengths, **more)


def mine(
    workdir: pathlib.Path,
    corpus: Corpus,
    vocabulary: Vocabulary,
    mining: Mining,
    miner: str,
    trainings: Sequence[Training],
    seed: int,
) -> dict[str, Any]:
    """Mines hard negatives with the model of the stage `miner`, for the pairs that no earlier stage has read.

    If earlier stages have read every pair of a source, all its pairs are used. The negatives of a query come from its
    own source. Nothing is mined if the corpus declares triplets. All processes mine.

    Args:
      workdir: the workdir of the run.
      corpus: the corpus of the recipe.
      vocabulary: the vocabulary of the model.
      mining: how negatives are chosen.
      miner: the stage that the triplet stage starts from.
      trainings: the stages of the recipe.
      seed: the seed of the recipe.
    """
    output = tables_folder(workdir, "triplet")
    if corpus.declares_triplets():
        return {"declared": str(output)}
    tables = open_tables(tables_folder(workdir, "pair"), kind="pair", vocabulary=vocabulary)
    embedder = Embedder.load(workdir / miner)
    reader = next((one for one in trainings if one.stage.name == miner and one.stage.batch.kind == "pair"), None)
    batch_size = reader.stage.batch.batch_size if reader else 1
    held_out = reader.held_out if reader else 0
    examples = Examples(tables, reader.data if reader else None, batch_size, seed, held_out)
    mined: dict[str, Any] = {}
    partial = output.with_name(f"{output.name}.partial")
    for name, shards in tables.items():
        unseen = examples.unread(name, reader.steps if reader else 0)
        table, among = shards[0], unseen
        if len(shards) > 1:
            table, among = examples.table(name, unseen[: mining.examples or None]), None
        written = output if len(tables) == 1 else partial / name
        mined[name] = mine_table(embedder, table, vocabulary, mining, written, among=among)
    if len(tables) == 1:
        return mined.popitem()[1]
    if is_first() and is_bucket(partial):
        with staged(output, last=MANIFEST) as folder:
            shutil.copytree(local_copy(partial), folder)
        remove(partial)
    elif is_first():
        take_place(partial, output)
    return mined


def evaluation_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the retrieval sets of the corpus."""
    return workdir / "data" / "corpus" / "evaluation"


def _probes(held_out: pathlib.Path) -> dict[str, RetrievalSet]:
    """Returns the probes of the corpus, which lie beside its evaluation sets."""
    return read_probes(held_out.with_name("probes"))


def retrieval_evaluator(
    training: Training,
    vocabulary: Vocabulary,
    held_out: pathlib.Path,
    lengths: Lengths | None,
    prompts: Mapping[str, str],
    config: Qwen3Config,
    devices: jax.sharding.Mesh,
) -> RetrievalEvaluator:
    """Returns the evaluator of a stage on the sets that its settings name, or on those of the corpus."""
    assert training.evaluation is not None
    sets = read_evaluation_sets(training.evaluation, held_out)
    contextual = training.stage.model_kind == "context_v1"
    size = document_size(lengths) if lengths else {}
    options: dict[str, Any] = {"contextual": contextual, "prompts": prompts, **size}
    return RetrievalEvaluator(sets, config, vocabulary, devices, **options)


def document_size(lengths: Lengths) -> dict[str, int]:
    """Returns the size of the documents in which passages are scored: as in the contextual stage."""
    return {"chunks_per_document": lengths.chunks, "tokens_per_document": lengths.chunks * (lengths.chunk + 1)}


def score_baseline(held_out: pathlib.Path) -> dict[str, Any]:
    """Scores BM25."""
    return score_bm25(read_sets(held_out), _probes(held_out))


def score_random(
    model: Qwen3Config, vocabulary: Vocabulary, seed: int, held_out: pathlib.Path, prompts: Mapping[str, str]
) -> dict[str, Any] | None:
    """Scores the same architecture with random weights."""
    params = jax.tree.map(np.asarray, initial_params(model, seed))
    return _score_untrained(model, vocabulary, params, held_out, prompts)


def score_initial(
    model: Qwen3Config, vocabulary: Vocabulary, initial: str, held_out: pathlib.Path, prompts: Mapping[str, str]
) -> dict[str, Any] | None:
    """Scores the imported weights with the mask of the recipe's model."""
    return _score_untrained(model, vocabulary, load_model(as_path(initial)).params, held_out, prompts)


def _score_untrained(
    model: Qwen3Config,
    vocabulary: Vocabulary,
    params: dict[str, Any],
    held_out: pathlib.Path,
    prompts: Mapping[str, str],
) -> dict[str, Any] | None:
    """All processes encode; only the first one has the result. Probes would cost time and say little."""
    embedder = Embedder(LoadedModel(model, vocabulary, params, "v1", "untrained", prompts), shared=True)
    return lead(embedder, lambda encoder: score_model(encoder, read_sets(held_out)))


def score(folder: pathlib.Path, held_out: pathlib.Path, lengths: Lengths) -> dict[str, Any] | None:
    """Scores a model folder on single passages; a context model also on each passage in its document.

    Documents are cut as in the contextual stage. All processes encode; only the first one has the result.
    """
    embedder = Embedder.load(folder, shared=True)
    options: dict[str, Any] = {
        "contextual": embedder.kind == "context_v1",
        **document_size(lengths),
    }
    return lead(embedder, lambda encoder: score_model(encoder, read_sets(held_out), _probes(held_out), **options))


def export(workdir: pathlib.Path, models: Mapping[Kind, str], results: Mapping[str, Any]) -> dict[str, Any]:
    """Exports one model folder per kind ("v1", "context_v1") to WORKDIR/export/KIND."""
    from pplx_jax.export.export_hf import export_hf  # imports PyTorch

    exported: dict[str, Any] = {}
    for kind, name in models.items():
        scores = results.get(name)
        if scores and kind == "context_v1":
            scores = scores.get("with_context", scores)
        exported[kind] = export_hf(workdir / name, workdir / "export" / kind, kind, scores=scores)
    return exported


def index(workdir: pathlib.Path, model: pathlib.Path) -> dict[str, Any]:
    """Embeds the corpus's search file on all processes; the first one indexes it."""
    from pplx_jax.retrieval.build_index import build_index
    from pplx_jax.retrieval.embed_file import embed_file

    searched = workdir / "data" / "corpus" / "search.jsonl"
    embedded = embed_file(model, searched, workdir / "embeddings", overflow="truncate")
    return (
        {**embedded, **build_index(workdir / "embeddings", workdir / "index", replace=True)} if is_first() else embedded
    )
