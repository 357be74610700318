"""Checks at the start of a run what would otherwise fail in a later phase, after days of training."""

import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax

from pplx_jax.core.errors import BadInput
from pplx_jax.core.packages import require_packages
from pplx_jax.core.paths import is_bucket
from pplx_jax.data.sources.corpus import Corpus
from pplx_jax.data.sources.mixture import Mixture, phases
from pplx_jax.data.sources.source import Source
from pplx_jax.evaluation.scoring.retrieval_evaluator import evaluation_folders
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.settings import Training
from pplx_jax.training.stage_check import check_stage
from pplx_jax.training.train_state import state_shapes

_GIB = 1 << 30


def check_stages(stages: Sequence[Training], model: Qwen3Config, mesh: Mesh) -> None:
    """Checks every stage of a recipe as `check_stage` does, and that its evaluation has the sets that it names.

    Raises:
      BadInput: a stage cannot be trained on the mesh, or a set of its evaluation is missing, or what its best metric
        needs; the message starts with the name of the stage.
    """
    devices = mesh.build()
    for training in stages:
        try:
            check_stage(training, training.model(model), devices, mesh)
            _check_evaluation(training)
        except BadInput as error:
            raise BadInput(f"{training.stage.name}: {error}") from error


def check_teachers(stages: Sequence[Training], corpus: Corpus) -> None:
    """Checks that the sources of a stage with a teacher have its scores, as far as they are known before the corpus.

    Raises:
      BadInput: they have none; the message starts with the name of the stage.
    """
    for training in stages:
        if not getattr(training.stage.batch, "scores", False):
            continue
        name = training.stage.name
        if not corpus.declares_triplets():
            raise BadInput(f"{name}: the stage reads teacher scores, and mined triplets have none; declare triplets")
        declared = [] if corpus.sources_need_build else corpus.training_sources(pathlib.Path())
        for source in declared:
            if source.kind == "triplet" and not source.has_scores and _is_read(source, training):
                raise BadInput(
                    f"{name}: the stage reads teacher scores, and the source {source.name} has none; name their column "
                    "in its Source.columns, or set TripletStage.teacher = ''"
                )


def _is_read(source: Source, training: Training) -> bool:
    mixtures = [mixture for _, mixture in phases(training.data or Mixture())]
    return any(
        not mixture.weights or any(f"{name}.".startswith(f"{source.name}.") for name in mixture.weights)
        for mixture in mixtures
    )


def _check_evaluation(training: Training) -> None:
    if training.evaluation is None:
        return
    evaluation_folders(training.evaluation)
    best = training.checkpointing.best_metric
    if best and not (training.held_out if best.startswith("eval/loss/") else training.evaluates_retrieval):
        field = "held_out" if best.startswith("eval/loss/") else "sets"
        raise BadInput(f"Checkpointing.best_metric={best!r} needs Evaluation.{field}; set it, or name another metric")


def check_packages(remains: Callable[[str], bool], *, whole: bool) -> None:
    """Checks that the packages of the phases that remain are installed.

    Args:
      remains: returns whether a phase is still to be done.
      whole: whether the run goes on to the export.

    Raises:
      BadInput: a package is missing; the message names the phase and the extra.
    """
    if remains("evaluate_bm25"):
        require_packages("the phase evaluate_bm25", "bm25s", extra="eval")
    if whole and remains("export"):
        require_packages("the phase export", "torch", "transformers", "sentence_transformers", extra="convert")


def check_disk(workdir: pathlib.Path, stages: Sequence[Training], model: Qwen3Config, *, whole: bool) -> None:
    """Checks that the checkpoints of the stages fit on the disk of the workdir. A bucket has no limit.

    Each stage keeps its latest checkpoints, and one more while it saves. The merge and two exports hold one model each.

    Args:
      workdir: the workdir; it need not exist.
      stages: those that are not finished.
      model: the encoder.
      whole: whether the run goes on to the export.

    Raises:
      BadInput: they do not fit; the message gives both sizes.
    """
    if is_bucket(workdir):
        return
    needed, largest, weights = 0, 0, 0
    for training in stages:
        optimizer = training.optimizer.build(training.steps)
        state = state_shapes(training.model(model), training.stage, optimizer, training.ema)
        each, weights = _bytes(state), _bytes(state.params)
        kept = training.checkpointing.keep + (
            training.checkpointing.keep_best if training.checkpointing.best_metric else 0
        )
        needed += max(kept * each - _used(workdir / training.stage.name), 0)
        largest = max(largest, each)
    needed += largest + (3 * weights if whole else 0)
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise BadInput(
            f"{workdir}: the checkpoints of {len(stages)} stages need {needed / _GIB:.1f} GiB, and "
            f"{free / _GIB:.1f} GiB are free; choose a --workdir on a larger disk, or lower Checkpointing.keep"
        )


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _used(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
