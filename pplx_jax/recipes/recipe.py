"""A whole recipe: from raw text to trained, scored, exported and searchable models."""

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from pplx_jax.checkpoints.huggingface.families import family_of
from pplx_jax.checkpoints.initial_model import copy_vocabulary, model_to_train
from pplx_jax.checkpoints.merge import Merge
from pplx_jax.checkpoints.merge_folders import MERGED, merge_checkpoints
from pplx_jax.checkpoints.model_folder import Kind
from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import write_json, write_text
from pplx_jax.core.output_folder import require_free
from pplx_jax.core.paths import as_path
from pplx_jax.core.prompts import checked_prompts
from pplx_jax.core.resume_check import settings_of
from pplx_jax.core.sole_owner import sole_owner
from pplx_jax.data.sources.corpus import Corpus, vocabulary_texts
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.open_tables import open_tables, require_lengths
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.evaluation.scoring.retrieval_sets import PER_QUERY
from pplx_jax.mining.choice import Mining
from pplx_jax.models.term_weights import TermWeights
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.processes import barrier, is_first, joins_processes
from pplx_jax.recipes import phases as work
from pplx_jax.recipes.gains import compared_models, gains
from pplx_jax.recipes.masked_tokens import masked_tokens, predicts_masked_tokens
from pplx_jax.recipes.phases import Phases, evaluation_folder, tables_folder
from pplx_jax.recipes.preflight import check_disk, check_packages, check_stages, check_teachers
from pplx_jax.recipes.results import TABLES, environment, write_report, write_results
from pplx_jax.recipes.weighted_start import NAME as INITIAL
from pplx_jax.recipes.weighted_start import start_folder, write_weighted_start
from pplx_jax.training.settings import Training, chosen_stages
from pplx_jax.training.train_stage import FINISHED, train

UNTIL_DATA = "data"
_DEFAULT_MERGE, _DEFAULT_MESH, _DEFAULT_MINING = Merge(), Mesh(), Mining()


@joins_processes
def run(
    workdir: pathlib.Path,
    config_text: str,
    *,
    corpus: Corpus,
    lengths: Lengths,
    stages: Sequence[Training],
    model: Qwen3Config | None = None,
    initial: str | None = None,
    term_weights: TermWeights | None = None,
    prompts: dict[str, str] | None = None,
    mesh: Mesh = _DEFAULT_MESH,
    mining: Mining = _DEFAULT_MINING,
    merge: Merge = _DEFAULT_MERGE,
    seed: int = 0,
    until: str | None = None,
    scored: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs every stage in order, then merge, evaluation, export, index and report. Finished phases are skipped.

    Args:
      workdir: the output folder. A workdir whose finished phases have other settings is refused.
      config_text: the resolved recipe, written next to the results.
      corpus: the text.
      lengths: token limits.
      stages: trainings; each starts from the stage that it names, if the recipe has it, else from the initial weights.
      model: the encoder; its vocab_size is the vocabulary's size. If None, that of `initial` made bidirectional.
      initial: a folder that `import-hf` or a stage wrote, or a Hugging Face folder that can be imported. The run
        starts from its weights and uses its vocabulary. None trains a vocabulary and starts from random weights.
      term_weights: weights of the tokens in a model with random weights, in WORKDIR/initial; equal if None.
      prompts: of the model by name: "query" before queries, "document" before documents. Training, evaluation and the
        export use them; a source may have its own (`Source.query_prompt`). None for no prompts.
      mesh: devices.
      mining: hard negatives of a stage that reads triplets.
      merge: the merge of two stages, if the recipe has both.
      seed: the seed of vocabulary, parameters, order and corruption.
      until: the last stage to train and score, or "data" to stop before the first stage, when the token tables are
        written. The same call without it does the rest.
      scored: what is scored: any of "bm25", "random", "initial", the stages and "merged"; None for all.

    Returns:
      {"results": path, "report": path, "table": text}; until "data" {"corpus": counts, "examples": by stage}.

    Raises:
      BadInput: the corpus is empty; a finished phase has other settings; the workdir is a file; the mesh is larger than
        the devices; `initial` is not a model or has other sizes than `model`; `initial` and `term_weights` are both
        given; two stages have the same name or are in the wrong order; a stage is shorter than its warm-up; or there
        is no stage `until`.
    """
    names = _names(stages)
    check_until(until, names)
    workdir = as_path(workdir)
    model, start = model_to_train(model, initial), start_folder(workdir, term_weights, initial)
    trained = () if until == UNTIL_DATA else stages[: names.index(until) + 1] if until else stages
    whole = until is None and {*merge.stages} <= {*names}
    check_stages(trained, model, mesh)
    check_teachers(trained, corpus)
    prompts = checked_prompts(prompts, "run.prompts")
    phases = Phases(
        workdir, phase_settings(corpus, lengths, stages, model, initial, term_weights, mining, merge, seed, prompts)
    )
    if is_first():
        require_free(workdir, "folder", lambda _: True)
        phases.require_same()
        check_packages(phases.remains, whole=whole)
        if whole and phases.remains("export"):
            family_of(model)  # refuses a model that cannot be exported
        unfinished = [training for training in trained if phases.remains(training.stage.name)]
        check_disk(workdir, unfinished, model, whole=whole)
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "config.gin", config_text)
        write_json(workdir / "recipe.json", {"stages": names})
    barrier("workdir")
    held_out = evaluation_folder(workdir)
    results: dict[str, Any] = {}
    per_query: dict[str, dict[str, list[float]]] = {}

    def keep(name: str, score: Callable[[], Any]) -> None:
        if scored is None or name in scored:
            scores = phases(f"evaluate_{name}", score, everyone=name != "bm25")
            per_query[name] = scores.pop(PER_QUERY, {})
            results[name] = scores

    def keep_model(name: str) -> None:
        keep(name, lambda: work.score(workdir / name, held_out, lengths))

    counts = phases("corpus", lambda: work.build(workdir, corpus), writes=("data/corpus",))
    logging.info("corpus: %s", ", ".join(f"{n} {name}" for name, n in counts.items() if isinstance(n, int)))
    if initial:
        vocabulary = _initial_vocabulary(workdir, initial)
    else:
        vocabulary = _vocabulary(workdir, phases, corpus, model.vocab_size, seed)
    tokenize = functools.partial(work.tokenize, workdir, corpus, vocabulary, lengths, prompts)
    examples = phases("tokenize", tokenize, writes=("data/tokens",))
    if until == UNTIL_DATA:
        return {"corpus": counts, "examples": examples}
    keep("bm25", lambda: work.score_baseline(held_out))
    keep("random", lambda: work.score_random(model, vocabulary, seed, held_out, prompts))

    if initial:
        keep(INITIAL, functools.partial(work.score_initial, model, vocabulary, initial, held_out, prompts))
    if term_weights:
        tables = [table for kind in ("text", "pair") for table in _tables(workdir, kind, vocabulary)]
        weigh = functools.partial(write_weighted_start, workdir, model, vocabulary, tables, term_weights, seed, prompts)
        phases(INITIAL, weigh, writes=(INITIAL,))
        keep_model(INITIAL)

    for training in stages:
        name, stage = training.stage.name, training.stage
        miner = training.earlier_stage
        if stage.batch.kind == "triplet" and miner in names:
            mine = functools.partial(work.mine, workdir, corpus, vocabulary, mining, miner, stages, seed)
            phases("mine", mine, everyone=True, writes=(f"data/tokens/{FOLDERS['triplet']}",))

        given = (model, vocabulary, mesh, seed, config_text, start, lengths, prompts)
        learn = functools.partial(_train, workdir, training, *given)
        phases(name, learn, everyone=True, writes=(name,))
        keep_model(name)
        if name in results and predicts_masked_tokens(stage):
            earlier, first = _earlier(workdir, training.earlier_stage), as_path(start) if start else None
            fill = (workdir / name, training, model, vocabulary, mesh, seed, earlier, first, held_out)
            predict = functools.partial(masked_tokens, *fill)
            results[name]["masked_tokens"] = phases(f"masked_tokens_{name}", predict, everyone=True)
        if name == until:
            break

    if whole:
        first, second, merged = (workdir / name for name in (*merge.stages, MERGED))
        join = functools.partial(merge_checkpoints, first, second, merged, weight=merge.weight, per=merge.per)
        phases("merge", join, writes=(MERGED,))
        keep_model(MERGED)
        exported: dict[Kind, str] = {"v1": MERGED}
        exported |= {one.stage.model_kind: one.stage.name for one in stages if one.stage.model_kind != "v1"}
        phases("export", lambda: work.export(workdir, exported, results), writes=("export",))
        phases("index", lambda: work.index(workdir, merged), everyone=True, writes=("embeddings", "index"))
    results["gains"] = gains(per_query, compared_models(stages, merge, results))
    results |= {"seconds": phases.seconds, "environment": environment()}
    if is_first():
        write_results(workdir, results)
        write_report(workdir)
    written, report = (str(workdir / name) for name in ("results.json", "report.html"))
    table = "\n\n".join(filter(None, (make(results) for make in TABLES))) + "\n"
    return {"results": written, "report": report, "table": table}


def check_until(until: str | None, stages: Sequence[str]) -> None:
    """Raises BadInput if a recipe of these stages cannot stop at `until`."""
    if until not in (None, UNTIL_DATA, *stages):
        raise BadInput(f"--until {until}: the recipe has {', '.join((UNTIL_DATA, *stages))}")


@joins_processes
def train_stage(
    workdir: pathlib.Path,
    stage: str,
    config_text: str,
    *,
    stages: Sequence[Training],
    model: Qwen3Config | None = None,
    initial: str | None = None,
    term_weights: TermWeights | None = None,
    lengths: Lengths | None = None,
    prompts: dict[str, str] | None = None,
    mesh: Mesh = _DEFAULT_MESH,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains one stage of a recipe on the token tables in WORKDIR/data/tokens; needs no TensorFlow.

    Raises:
      BadInput: the recipe has no such stage; there are no token tables or no vocabulary; the stage that it starts from
        is not finished; or `initial` is refused as in `run`.
    """
    _names(stages)  # refuses stages that do not fit together
    [chosen] = chosen_stages(stages, stage)
    workdir = as_path(workdir)
    model, start = model_to_train(model, initial), start_folder(workdir, term_weights, initial)
    vocabulary = _initial_vocabulary(workdir, initial) if initial else load_vocabulary(workdir / "data")
    with sole_owner(workdir) if is_first() else contextlib.nullcontext():
        prompts = checked_prompts(prompts, "run.prompts")
        return _train(workdir, chosen, model, vocabulary, mesh, seed, config_text, start, lengths, prompts)


def _train(
    workdir: pathlib.Path,
    training: Training,
    model: Qwen3Config,
    vocabulary: Vocabulary,
    mesh: Mesh,
    seed: int,
    config_text: str,
    initial: str | None,
    lengths: Lengths | None,
    prompts: Mapping[str, str],
) -> dict[str, Any]:
    """Trains one stage. It starts from the stage that it names if that was trained, else from the initial weights."""
    stage, kind = training.stage, training.stage.batch.kind
    held_out = evaluation_folder(workdir)
    tables = open_tables(tables_folder(workdir, kind), kind=kind, vocabulary=vocabulary, verify=is_first())
    if lengths:
        require_lengths(tables, lengths)
    retrieval = functools.partial(work.retrieval_evaluator, training, vocabulary, held_out, lengths, prompts)
    return train(
        workdir / stage.name,
        training,
        model,
        tables,
        vocabulary,
        mesh=mesh,
        seed=seed,
        start_from=_earlier(workdir, training.earlier_stage),
        initial=as_path(initial) if initial else None,
        config_text=config_text,
        prompts=prompts,
        evaluators=[retrieval] if training.evaluates_retrieval else [],
    )


def _names(stages: Sequence[Training]) -> list[str]:
    """Returns the names of the stages, in their order.

    Raises:
      BadInput: two stages have one name, a stage comes before the one it starts from, or `Training.starts_from` or
        `Training.initial_share` needs a stage that the recipe does not have.
    """
    names = [training.stage.name for training in stages]
    for place, training in enumerate(stages):
        name, earlier = training.stage.name, training.earlier_stage
        if name in names[:place]:
            raise BadInput(f"run.stages: two stages are called {name}; give one of them another name")
        if earlier in names[place:]:
            raise BadInput(f"run.stages: {name} starts from {earlier}; list {earlier} before it")
        if earlier not in names and (training.starts_from or training.initial_share):
            raise BadInput(f"run.stages: {name} starts from {earlier}, which the recipe does not have; add that stage")
    return names


def _earlier(workdir: pathlib.Path, name: str | None) -> pathlib.Path | None:
    """Returns the folder of the stage that another one starts from; None if it was not trained."""
    if name is None or not (workdir / name).exists():
        return None
    if not (workdir / name / FINISHED).exists():
        raise BadInput(f"{workdir / name}: {name} is not finished; run train --stage {name} first")
    return workdir / name


def phase_settings(
    corpus: Corpus,
    lengths: Lengths,
    stages: Sequence[Training],
    model: Qwen3Config,
    initial: str | None,
    term_weights: TermWeights | None,
    mining: Mining,
    merge: Merge,
    seed: int,
    prompts: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns the settings of each phase, for `Phases`."""
    start = settings_of(model, seed=seed, initial=initial)
    told = {"run.prompts": dict(prompts)} if prompts else {}
    settings = {
        "corpus": settings_of(corpus),
        "vocabulary": {"size": model.vocab_size, "seed": seed},
        "tokenize": settings_of(lengths, initial=initial, **told) | (corpus.file_digests() if is_first() else {}),
        "evaluate_random": start,
        f"evaluate_{INITIAL}": start if initial else {},
        **{
            training.stage.name: settings_of(training) | start | {"Evaluation.held_out": training.held_out}
            for training in stages
        },
        "mine": settings_of(mining, seed=seed),
        "merge": settings_of(merge),
    }
    if prompts:
        for name in ("evaluate_random", f"evaluate_{INITIAL}"):
            settings[name] = settings[name] | told
    if term_weights:
        settings[INITIAL] = settings_of(term_weights) | start
    return settings


def _initial_vocabulary(workdir: pathlib.Path, initial: str) -> Vocabulary:
    if is_first():
        copy_vocabulary(initial, workdir / "data")
    barrier("vocabulary copied")
    return load_vocabulary(workdir / "data")


def _vocabulary(workdir: pathlib.Path, phases: Phases, corpus: Corpus, size: int, seed: int) -> Vocabulary:
    folder = workdir / "data"

    def make() -> dict[str, Any]:
        texts = vocabulary_texts(corpus, local_copy(folder / "corpus"))
        vocabulary = train_vocabulary(texts, folder / "vocabulary.model", size=size, seed=seed)
        return {"size": vocabulary.size, "fingerprint": vocabulary.fingerprint}

    phases("vocabulary", make, writes=("data/vocabulary.model",))
    return load_vocabulary(folder)


def _tables(workdir: pathlib.Path, kind: str, vocabulary: Vocabulary) -> list[TokenTable]:
    """Returns all tables of one kind of examples; empty if the corpus has no such examples."""
    folder = tables_folder(workdir, kind)
    if not folder.exists():
        return []
    return list(itertools.chain(*open_tables(folder, kind=kind, vocabulary=vocabulary).values()))
