"""A whole recipe: raw text to two trained, scored, exported and searchable models, each phase done once."""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from pplx_jax.checkpoints.initial_model import copy_vocabulary, model_to_train
from pplx_jax.checkpoints.merge import Merge
from pplx_jax.checkpoints.merge_folders import merge_checkpoints
from pplx_jax.checkpoints.model_folder import ModelFolder
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.output_folder import require_free, take_place
from pplx_jax.data.batches.examples import Examples, open_tables
from pplx_jax.data.sources.source_corpus import declares_triplets, tokenize_corpus, vocabulary_texts
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary, train_vocabulary
from pplx_jax.evaluation.scoring.retrieval_sets import read_sets, score_model, score_sets
from pplx_jax.evaluation.suites.beir_folder import evaluate_bm25
from pplx_jax.inference.embedder import Embedder
from pplx_jax.mining.mine import Mining, mine_table
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.term_weights import TermWeights
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.processes import barrier, is_first, joins_processes
from pplx_jax.recipes.results import environment, format_sets, format_table, write_report, write_results
from pplx_jax.recipes.weighted_start import NAME as INITIAL
from pplx_jax.recipes.weighted_start import start_folder, write_weighted_start
from pplx_jax.training.trainer import FINISHED, Training, train

STARTS_FROM = {"diffusion": None, "pair": "diffusion", "contextual": "pair", "triplet": "pair"}
UNTIL_DATA = "data"
_DEFAULT_MERGE, _DEFAULT_MESH, _DEFAULT_MINING = Merge(), Mesh(), Mining()


class Corpus(Protocol):
    """Where a recipe's text comes from: writes the corpus files, or declares sources (`data.sources.source_corpus`)."""

    def build(self, output: pathlib.Path) -> Mapping[str, Any]:
        """Writes text.jsonl, pairs.jsonl, documents.jsonl, search.jsonl and evaluation/; returns counts.

        evaluation/ is one BEIR folder, or holds several.
        """
        ...


class _Phases:
    """Phases of a run, each done once: what one returned is kept in WORKDIR/phases/NAME.json with its seconds.

    Of several processes the first does a phase and the others wait, but for training, which is everyone's.
    """

    def __init__(self, workdir: pathlib.Path):
        self._folder = workdir / "phases"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any], everyone: bool = False) -> Any:
        marker = self._folder / f"{name}.json"
        if not marker.exists() and (everyone or is_first()):
            logging.info("phase: %s", name)
            started = time.monotonic()
            result = work()
            # A stage that was interrupted knows the seconds of its earlier runs; other phases start again.
            whole = result.get("seconds") if isinstance(result, Mapping) else None
            if is_first():
                done = {"seconds": time.monotonic() - started if whole is None else whole, "result": result}
                write_json(marker, done)
        barrier(f"phase {name}")
        done = read_json(marker)
        self.seconds[name] = done["seconds"]
        return done["result"]


@joins_processes
def run(
    workdir: pathlib.Path,
    config_text: str,
    fingerprint: str,
    *,
    corpus: Corpus,
    lengths: Lengths,
    stages: Sequence[Training],
    model: Qwen3Config | None = None,
    initial: str | None = None,
    term_weights: TermWeights | None = None,
    mesh: Mesh = _DEFAULT_MESH,
    mining: Mining = _DEFAULT_MINING,
    merge: Merge = _DEFAULT_MERGE,
    seed: int = 0,
    until: str | None = None,
) -> dict[str, Any]:
    """Every stage in order, then merge, evaluation, export, index and report. Finished phases are skipped.

    Args:
      workdir: where everything goes; a workdir of another recipe is refused.
      config_text: the resolved recipe, written beside the results.
      fingerprint: of the recipe.
      corpus: the text.
      lengths: token limits.
      stages: trainings, by the names of `STARTS_FROM`.
      model: the encoder; its vocab_size is the vocabulary's size. Where None, that of `initial` made bidirectional.
      initial: a folder that `import-hf` or a stage wrote, or a Hugging Face folder that could be imported. The first
        stage starts from its weights, and its vocabulary is used: none is trained. Random weights where None.
      term_weights: how the tokens of a model from scratch are weighted at first, in WORKDIR/initial; alike where None.
      mesh: devices.
      mining: hard negatives of the triplet stage.
      merge: of the contextual and the triplet model.
      seed: of vocabulary, parameters, order and corruption.
      until: where to stop: after a stage is trained and scored, or with "data" before the first, when its token files
        are there. The same call without it does the rest.

    Returns:
      {"results": path, "report": path, "table": text}; until "data" {"corpus": counts, "examples": by stage}.

    Raises:
      BadInput: the corpus is empty, the workdir is another recipe's or a file, a mesh larger than the devices,
        `initial` is no model or one of other sizes than `model`, `initial` and `term_weights` are both there, a
        stage is shorter than its warm-up, or the recipe has no stage `until`.
    """
    mesh.build()
    names = [training.stage.name for training in stages]
    check_until(until, names)
    for training in stages:
        training.optimizer.learning_rate(training.steps)  # the last stage's warm-up is refused before the first begins
    workdir = pathlib.Path(workdir)
    model, start = model_to_train(model, initial), start_folder(workdir, term_weights, initial)
    if is_first():
        _claim(workdir, fingerprint, config_text)
    barrier("claim")
    phases = _Phases(workdir)
    held_out = workdir / "data" / "corpus" / "evaluation"
    results: dict[str, Any] = {}

    counts = phases("corpus", lambda: dict(corpus.build(workdir / "data" / "corpus")))
    logging.info("corpus: %s", ", ".join(f"{n} {name}" for name, n in counts.items() if isinstance(n, int)))
    if initial:
        vocabulary = _initial_vocabulary(workdir, initial)
    else:
        vocabulary = _vocabulary(workdir, phases, corpus, model.vocab_size, seed)
    written, tokens = workdir / "data" / "corpus", workdir / "data" / "tokens"
    examples = phases("tokenize", lambda: tokenize_corpus(corpus, written, vocabulary, tokens, lengths))
    if until == UNTIL_DATA:
        return {"corpus": counts, "examples": examples}
    results["bm25"] = phases("evaluate_bm25", lambda: score_sets(read_sets(held_out), evaluate_bm25))
    results["random"] = phases("evaluate_random", lambda: _score_random(model, vocabulary, seed, held_out))

    if term_weights:
        tables = [table for name in ("diffusion", "pair") for table in _tables(tokens, name, vocabulary)]
        weigh = functools.partial(write_weighted_start, workdir, model, vocabulary, tables, term_weights, seed)
        phases(INITIAL, weigh)
        results[INITIAL] = phases(f"evaluate_{INITIAL}", lambda: _score(workdir / INITIAL, held_out, lengths))

    for training in stages:
        name = training.stage.name
        if name == "triplet":
            phases("mine", lambda: _mine(workdir, corpus, vocabulary, mining, stages, seed))

        work = functools.partial(_train, workdir, training, model, vocabulary, mesh, seed, config_text, start)
        phases(name, work, everyone=True)
        results[name] = phases(f"evaluate_{name}", lambda name=name: _score(workdir / name, held_out, lengths))
        if name == until:
            break

    if until is None and {"contextual", "triplet"} <= {*names}:
        contextual, triplet, merged = (workdir / name for name in ("contextual", "triplet", "merged"))
        phases("merge", lambda: merge_checkpoints(contextual, triplet, merged, **dataclasses.asdict(merge)))
        results["merged"] = phases("evaluate_merged", lambda: _score(merged, held_out, lengths))
        phases("export", lambda: _export(workdir, results))
        phases("index", lambda: _index(workdir, merged))
    results |= {"seconds": phases.seconds, "environment": environment()}
    if is_first():
        write_results(workdir, results)
        write_report(workdir)
    written, report = (str(workdir / name) for name in ("results.json", "report.html"))
    table = "\n\n".join(filter(None, (format_table(results), format_sets(results)))) + "\n"
    return {"results": written, "report": report, "table": table}


def check_until(until: str | None, stages: Sequence[str]) -> None:
    """Raises BadInput where a recipe of these stages cannot stop there."""
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
    mesh: Mesh = _DEFAULT_MESH,
    seed: int = 0,
) -> dict[str, Any]:
    """One stage of a recipe on the token files in WORKDIR/data/tokens/STAGE; needs no TensorFlow.

    Raises:
      BadInput: no such stage in the recipe, no token files, no vocabulary, the stage before it is not finished, or as
        `run` of `initial`.
    """
    chosen = next((training for training in stages if training.stage.name == stage), None)
    if chosen is None:
        raise BadInput(f"--stage {stage}: the recipe has {', '.join(t.stage.name for t in stages)}")
    workdir = pathlib.Path(workdir)
    model, start = model_to_train(model, initial), start_folder(workdir, term_weights, initial)
    vocabulary = _initial_vocabulary(workdir, initial) if initial else Vocabulary.load(workdir / "data")
    return _train(workdir, chosen, model, vocabulary, mesh, seed, config_text, start)


def _train(
    workdir: pathlib.Path,
    training: Training,
    model: Qwen3Config,
    vocabulary: Vocabulary,
    mesh: Mesh,
    seed: int,
    config_text: str,
    initial: str | None,
) -> dict[str, Any]:
    """One stage, from the stage before it where that was trained, else from the initial weights; see `train`."""
    name = training.stage.name
    return train(
        workdir / name,
        training,
        model,
        open_tables(workdir / "data" / "tokens" / name, stage=name, vocabulary=vocabulary),
        vocabulary,
        mesh=mesh,
        seed=seed,
        start_from=_earlier(workdir, name),
        initial=pathlib.Path(initial) if initial else None,
        config_text=config_text,
    )


def _earlier(workdir: pathlib.Path, name: str) -> pathlib.Path | None:
    """The folder of the stage before this one, where it was trained."""
    earlier = STARTS_FROM[name]
    if earlier is None or not (workdir / earlier).exists():
        return None
    if not (workdir / earlier / FINISHED).exists():
        raise BadInput(f"{workdir / earlier}: {earlier} is not finished; run train --stage {earlier} first")
    return workdir / earlier


def _claim(workdir: pathlib.Path, fingerprint: str, config_text: str) -> None:
    """Marks the workdir as this recipe's, or refuses it."""
    require_free(workdir, "folder", lambda _: True)
    marker = workdir / "recipe.json"
    if marker.exists():
        if read_json(marker)["fingerprint"] != fingerprint:
            raise BadInput(
                f"{workdir} belongs to another recipe (see {workdir / 'config.gin'}); "
                "choose a new --workdir or remove it"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.gin").write_text(config_text, encoding="utf-8")
    write_json(marker, {"fingerprint": fingerprint})


def _initial_vocabulary(workdir: pathlib.Path, initial: str) -> Vocabulary:
    if is_first():
        copy_vocabulary(initial, workdir / "data")
    barrier("vocabulary copied")
    return Vocabulary.load(workdir / "data")


def _vocabulary(workdir: pathlib.Path, phases: _Phases, corpus: Corpus, size: int, seed: int) -> Vocabulary:
    folder = workdir / "data"

    def work() -> dict[str, Any]:
        texts = vocabulary_texts(corpus, folder / "corpus")
        vocabulary = train_vocabulary(texts, folder / "vocabulary.model", size=size, seed=seed)
        return {"size": vocabulary.size, "fingerprint": vocabulary.fingerprint}

    phases("vocabulary", work)
    return Vocabulary.load(folder)


def _tables(tokens: pathlib.Path, stage: str, vocabulary: Vocabulary) -> list[TokenTable]:
    """All tables of a stage's sources; none where the corpus has no text for it."""
    if not (tokens / stage).exists():
        return []
    return list(itertools.chain(*open_tables(tokens / stage, stage=stage, vocabulary=vocabulary).values()))


def _mine(
    workdir: pathlib.Path,
    corpus: Corpus,
    vocabulary: Vocabulary,
    mining: Mining,
    stages: Sequence[Training],
    seed: int,
) -> dict[str, Any]:
    """Mines the pairs that the pair stage has not come to, all of a source where it has seen each.

    A query's negatives are of its own source. Nothing is mined where triplets are declared.
    """
    tokens = workdir / "data" / "tokens"
    if declares_triplets(corpus):
        return {"declared": str(tokens / "triplet")}
    tables = open_tables(tokens / "pair", stage="pair", vocabulary=vocabulary)
    embedder = Embedder.load(workdir / "pair")
    pair = next((training for training in stages if training.stage.name == "pair"), None)
    examples = Examples(tables, pair.data if pair else None, pair.stage.batch_size if pair else 1, seed)
    mined: dict[str, Any] = {}
    for name, shards in tables.items():
        unseen = examples.unread(name, pair.steps if pair else 0)
        table, among = shards[0], unseen
        if len(shards) > 1:
            table, among = examples.table(name, unseen[: mining.examples or None]), None
        output = tokens / "triplet" if len(tables) == 1 else tokens / "triplet.partial" / name
        mined[name] = mine_table(embedder, table, vocabulary, mining, output, among=among)
    if len(tables) == 1:
        return mined.popitem()[1]
    take_place(tokens / "triplet.partial", tokens / "triplet")
    return mined


def _score_random(model: Qwen3Config, vocabulary: Vocabulary, seed: int, held_out: pathlib.Path):
    params = jax.tree.map(np.asarray, initial_params(model, seed))
    embedder = Embedder(ModelFolder(model, vocabulary, params, "v1", "random"))
    return score_model(embedder, read_sets(held_out))


def _score(folder: pathlib.Path, held_out: pathlib.Path, lengths: Lengths) -> dict[str, Any]:
    """Passages alone; of a context model also each in its document, its own use, cut as the stage was trained."""
    embedder = Embedder.load(folder)
    return score_model(
        embedder,
        read_sets(held_out),
        contextual=embedder.kind == "context_v1",
        chunks_per_document=lengths.chunks,
        tokens_per_document=lengths.chunks * (lengths.chunk + 1),
    )


def _export(workdir: pathlib.Path, results: Mapping[str, Any]) -> dict[str, Any]:
    from pplx_jax.export.export_hf import export_hf  # PyTorch, only here

    export, context_scores = workdir / "export", results["contextual"]["with_context"]
    return {
        "v1": export_hf(workdir / "merged", export / "v1", "v1", scores=results["merged"]),
        "context_v1": export_hf(workdir / "contextual", export / "context_v1", "context_v1", scores=context_scores),
    }


def _index(workdir: pathlib.Path, model: pathlib.Path) -> dict[str, Any]:
    from pplx_jax.retrieval.build_index import build_index
    from pplx_jax.retrieval.embed_file import embed_file

    searched = workdir / "data" / "corpus" / "search.jsonl"
    embedded = embed_file(model, searched, workdir / "embeddings", overflow="truncate")
    return {**embedded, **build_index(workdir / "embeddings", workdir / "index")}
