"""Reads the examples of Tasks and Mixtures that are registered with SeqIO as rows of a source.

A feature of token ids becomes a text. It is the feature NAME_pretokenized if the example has that. Otherwise the
vocabulary of the task decodes the ids. A task that has a cache in one of SeqIO's cache folders is read from the cache.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.quiet_tensorflow import first_line, start_tensorflow

if TYPE_CHECKING:
    import seqio

_RAW = "_pretokenized"


def task_rates(name: str) -> dict[str, float]:
    """Returns the tasks of a Mixture with their rates; {name: 1.0} for a Task.

    Raises:
        BadInput: SeqIO has no Task or Mixture of this name, or is not installed.
    """
    seqio, found = _provider(name)
    if isinstance(found, seqio.Task):
        return {name: 1.0}
    return {task.name: float(found.get_rate(task)) for task in found.tasks}


def list_task_shards(name: str, split: str) -> list[str]:
    """Returns the shards of a Task as "SPLIT[I/N]": those of its cache, else those of its source.

    Raises:
        BadInput: there is no such Task or split.
    """
    seqio, task = _provider(name)
    if split not in task.splits:
        raise BadInput(f"{name}: no split {split!r}; the task has {', '.join(task.splits)}")
    if task.cache_dir is not None:
        import tensorflow as tf

        with tf.io.gfile.GFile(seqio.get_cached_info_path(task.cache_dir, split)) as file:
            count = int(json.load(file)["num_shards"])
    else:
        count = len(task.source.list_shards(split))
    return [f"{split}[{shard}/{count}]" for shard in range(count)]


def task_rows(name: str, shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("NAME SPLIT[I/N]:NUMBER", row) of one shard, in order. Texts are bytes or str.

    Raises:
        BadInput: there is no such Task, or it fails.
    """
    seqio, task = _provider(name)
    split, _, place = shard.removesuffix("]").partition("[")
    index, count = map(int, place.split("/"))
    examples = task.get_dataset(
        sequence_length=None,
        split=split,
        use_cached=task.cache_dir is not None,
        shuffle=False,
        shard_info=seqio.ShardInfo(index, count),
        try_in_mem_cache=False,
    )
    import tensorflow as tf

    number = 0
    try:
        for number, example in enumerate(examples, start=1):
            yield f"{name} {shard}:{number}", _row(example, task.output_features)
    except tf.errors.OpError as error:
        raise BadInput(f"{name} {shard}:{number + 1}: the task fails here ({first_line(error)}); correct it") from error


def _provider(name: str) -> tuple[Any, Any]:
    """Returns the module seqio, and the Task or Mixture."""
    try:
        start_tensorflow()
        import seqio
    except ImportError:
        raise BadInput(f"{name}: reading SeqIO's tasks needs seqio: pip install 'pplx-jax[data]'") from None
    try:
        return seqio, seqio.get_mixture_or_task(name)
    except ValueError:
        raise BadInput(
            f"SeqIO has no Task or Mixture {name!r}; name the module that registers it in SeqioCorpus.modules"
        ) from None


def _row(example: Any, features: Any) -> dict[str, Any]:
    row = {name: _plain(value) for name, value in example.items()}
    for name, feature in features.items():
        if name + _RAW in row:
            row[name] = row[name + _RAW]
        elif name in row and feature.dtype.is_integer:
            row[name] = _decoded(row[name], feature.vocabulary)
    return row


def _plain(value: Any) -> Any:
    """Returns a tensor as Python lists and scalars."""
    if hasattr(value, "to_list"):
        return value.to_list()
    array = value.numpy()
    return array.tolist() if hasattr(array, "tolist") else array


def _decoded(ids: Any, vocabulary: "seqio.Vocabulary") -> Any:
    """Returns the text of token ids, or the list of texts of a list of token ids."""
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        return [_decoded(part, vocabulary) for part in ids]
    return vocabulary.decode(ids) if isinstance(ids, list) else ids
