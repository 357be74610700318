"""A TFDS builder that prepares declared sources: `tfds.load('NAME/KIND', data_dir=...)`.

TFDS writes the checked examples of all sources of a kind once, in shards, and reads them from there afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.source import Source

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VERSION = "1.0.0"
Drop = Callable[[str], bool]


@dataclasses.dataclass
class _Declared:
    """What a builder prepares. TFDS refuses a second builder of one name, so a new recipe replaces this."""

    sources: Sequence[Source]
    drop: Drop | None


_declared: dict[str, _Declared] = {}


def register_builder(name: str, sources: Sequence[Source], drop: Drop | None = None) -> None:
    """Registers the builder `name`, with a configuration for each kind. Sources of the same name before are replaced.

    The split is "train". Features are those of `Source.examples`; `queries` of a contextual document are {text, chunk}.
    Prepare again into another `data_dir` after the files of a source have changed.

    Args:
        name: in lower case with underscores, such as "pplx_embed".
        sources: of any kinds.
        drop: whether a text must not be trained on; its row is left out.
    """
    known = name in _declared
    _declared[name] = _Declared(sources, drop)
    if not known:
        _define(name)


def _define(registered: str) -> None:
    import tensorflow_datasets as tfds
    from etils import epath

    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    query = {"text": tfds.features.Text(), "chunk": tfds.features.Scalar(np.int32)}
    features = {
        "text": {"text": text},
        "pair": {"query": text, "positive": text},
        "triplet": {"query": text, "positive": text, "negatives": texts},
        "contextual": {"chunks": texts, "queries": tfds.features.Sequence(query)},
    }
    labels = dict.fromkeys(("language", "source"), text)

    class Declared(tfds.core.GeneratorBasedBuilder):
        name = registered
        code_path = None  # there are no checksums of downloads beside it
        pkg_dir_path = epath.Path(__file__).parent
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind) for kind in features]

        def _info(self) -> tfds.core.DatasetInfo:
            kind = self.builder_config.name
            scored = kind == "triplet" and any(source.has_scores for source in _declared[registered].sources)
            scores = {"scores": tfds.features.Sequence(np.float32)} if scored else {}  # [] for sources without
            of_kind = tfds.features.FeaturesDict({**features[kind], **scores, **labels})
            return tfds.core.DatasetInfo(builder=self, features=of_kind)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            declared, kind = _declared[registered], self.builder_config.name
            sources = [source for source in declared.sources if source.kind == kind]
            if not sources:
                raise BadInput(f"{registered}/{kind}: the recipe declares no source of this kind")
            for part in (part for source in sources for part in source.parts().values()):
                for key, example in _examples(part, declared.drop):
                    yield key, {"scores": [], **example} if "scores" in self.info.features else example


def _examples(part: Source, drop: Drop | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (unique key, example) of all shards of a part."""
    bad = BadRows(part.name, part.max_bad_share)
    number = 0
    for shard in part.shards():
        for example in part.examples(shard, bad, drop=drop):
            if "queries" in example:
                queries = [{"text": text, "chunk": chunk} for text, chunk in example["queries"]]
                example = {**example, "queries": queries}
            yield f"{part.name}-{number:012d}", example
            number += 1
    bad.finish()
