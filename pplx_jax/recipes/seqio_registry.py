"""Puts the sources of a recipe into the registries of SeqIO and TFDS, for training with other frameworks.

    from pplx_jax.recipes.seqio_registry import register_recipe

    register_recipe("my_lab", ["my_lab/recipe.gin"], vocabulary="base")
    seqio.get_mixture_or_task("my_lab.pair")

`pplx_jax.recipes.pplx_embed_tasks` does this for the published recipe when it is imported.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.configuration.config import load, preserved
from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import checked_prompts
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.duplicates import Drop, Duplicates, Mode, find_duplicates
from pplx_jax.data.sources.mixture import Mixture, phases
from pplx_jax.data.sources.quiet_tensorflow import start_tensorflow
from pplx_jax.data.sources.seqio_tasks import add_mixture, add_task, source_task, valid_name
from pplx_jax.data.sources.seqio_vocabulary import seqio_vocabulary
from pplx_jax.data.sources.source import Source, weighted_parts
from pplx_jax.data.sources.tfds_builder import register_builder
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary


def register_recipe(
    name: str,
    gin_files: Sequence[str],
    gin_params: Sequence[str] = (),
    *,
    vocabulary: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Registers the declared sources of a recipe with SeqIO and TFDS. What `name` registered before is replaced.

    SeqIO: the Task NAME.KIND.SOURCE for each part of a source, and the Mixture NAME.STAGE for each stage that reads
    some, with the weights of the stage. A stage with a curriculum has a Mixture for each of its parts, NAME.STAGE.1
    and so on; NAME.STAGE is the last one. Without weights the rates are the numbers of examples, which are counted when
    the mixture is first read.

    TFDS: the builder NAME with a configuration for each kind, without prompts and weights.

    No file is read before a dataset is asked for, neither sources nor the vocabulary. gin's bindings stay as they are.

    Args:
        name: such as "pplx_embed".
        gin_files, gin_params: the recipe.
        vocabulary: a vocabulary, or a folder that holds one, such as a model; None for that of `run.initial`.

    Returns:
        The names of the mixtures.

    Raises:
        BadInput: the recipe is refused, or its sources need files that `build` writes.
    """
    with preserved():
        recipe = load(gin_files, gin_params).arguments["run"]
    corpus, lengths = recipe["corpus"], recipe["lengths"]
    if corpus.sources_need_build:
        raise BadInput(f"{name}: the sources of {type(corpus).__name__} are made by a run; declare them (SourceCorpus)")
    start_tensorflow()
    prompts = checked_prompts(recipe.get("prompts"), "run.prompts")
    sources = [source.with_prompts(prompts) for source in corpus.training_sources(None)]
    drop = _drop(corpus) if getattr(corpus, "drop_overlap", False) else None
    duplicates = _duplicates(sources, corpus.excluded_duplicates(), drop)
    path = vocabulary or recipe.get("initial")
    register_builder(name, sources, drop, duplicates)
    pieces = seqio_vocabulary(functools.partial(_vocabulary, name, path))
    of_kind: dict[str, dict[str, tuple[Source, float]]] = {}
    for part, weight in weighted_parts(sources):
        of_kind.setdefault(part.kind, {})[part.name] = (part, weight)
        options = {"shards": part.shards, "max_chunks": lengths.chunks, "drop": drop, "duplicates": duplicates}
        add_task(source_task(part, pieces, name=_task(name, part), **options))
    mixtures = []
    for training in recipe["stages"]:
        parts = of_kind.get(training.stage.batch.kind, {})
        if not parts:
            continue
        found = [mixture for _, mixture in phases(training.data or Mixture())]
        curriculum = {f".{number}": mixture for number, mixture in enumerate(found, 1)} if len(found) > 1 else {}
        for ending, mixture in {**curriculum, "": found[-1]}.items():
            mixtures.append(f"{name}.{training.stage.name}{ending}")
            add_mixture(mixtures[-1], _rates(name, parts, mixture, drop, duplicates))
    return mixtures


def _task(name: str, part: Source) -> str:
    return f"{name}.{part.kind}.{'.'.join(valid_name(word) for word in part.name.split('.'))}"


def _rates(
    name: str,
    parts: dict[str, tuple[Source, float]],
    mixture: Mixture,
    drop: Drop | None,
    duplicates: Duplicates | None,
) -> list[tuple[str, Any]]:
    """Returns the tasks of a mixture with their rates."""
    if mixture.weights:
        weights = {part: weight for part, (_, weight) in parts.items()}
        shares = mixture.shares(dict.fromkeys(parts, 0), weights)
        return [(_task(name, parts[part][0]), share) for part, share in shares.items()]
    if len(parts) == 1:
        return [(_task(name, part), 1.0) for part, _ in parts.values()]
    power = 1 / mixture.temperature

    def rate(part: Source) -> Callable[[Any], float]:
        return functools.cache(lambda _: float(_count(part, drop, duplicates)) ** power)

    return [(_task(name, part), rate(part)) for part, _ in parts.values()]


def _count(part: Source, drop: Drop | None, duplicates: Duplicates | None) -> int:
    bad, count = BadRows(part.name, part.max_bad_share), 0
    for shard in part.shards():
        repeated = duplicates.of_shard(part.name, shard) if duplicates else None
        count += sum(1 for _ in part.examples(shard, bad, drop=drop, repeated=repeated))
    return count


def _duplicates(sources: Sequence[Source], mode: Mode, drop: Drop | None) -> Duplicates | None:
    """Returns the duplicates of all sources, which are read at the first question; None if none are left out."""
    if not mode:
        return None
    find = functools.cache(lambda: find_duplicates([part for part, _ in weighted_parts(sources)], mode, drop))
    return Duplicates(mode, lambda name, shard: find()[name, shard])


def _drop(corpus: Any) -> Drop:
    """Returns whether a text overlaps with the evaluation sets, which are read at the first text."""
    overlap = functools.cache(corpus.excluded_texts)
    return lambda text: overlap().of(text)


def _vocabulary(name: str, path: str | os.PathLike[str] | None) -> Vocabulary:
    if path is None:
        raise BadInput(f"{name}: no vocabulary; give register_recipe a vocabulary, or bind run.initial")
    return load_vocabulary(find_model(path))
