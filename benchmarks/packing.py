"""How full the packed sequences of every stage are on real text, and how many tokens are cut for it.

    python benchmarks/packing.py DATA_FOLDER [--batch N] [--hosts N --devices N] [--output FILE.json]

DATA_FOLDER holds retrieval/NAME/ (BEIR folders) and text/*.jsonl.gz with `text` in each line. For every stage all these
sources form one mixture, at the sequence lengths of the full recipes. Each host packs its part of a batch, with equally
many sequences per device.
"""

import argparse
import json
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from pplx_jax.data.batches.batch_spec import multiple_for
from pplx_jax.data.batches.examples import Examples, Selection
from pplx_jax.data.batches.packed_batch import padded
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.seqio_tasks import tokenize_sources
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.training.stages.contextual import ContextualStage
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.stages.pair import PairStage
from pplx_jax.training.stages.triplet import TripletStage

LENGTHS = Lengths(text=4096, query=64, document=512, chunk=256, chunks=16)
NEGATIVES = 7
BATCHES = 50
VOCABULARY = 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=256, help="examples per step (default 256)")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="devices of all hosts (default 1)")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    stages = {
        "diffusion, rows of 4,096": DiffusionStage(batch_size=min(options.batch, 128), row_length=4096),
        "pair, rows of 512": PairStage(batch_size=options.batch, row_length=512),
        "pair, rows of 1,024": PairStage(batch_size=options.batch, row_length=1024, slots=64),
        "triplet, rows of 512": TripletStage(batch_size=options.batch, row_length=512, negatives=NEGATIVES),
        "contextual, rows of 4,224": ContextualStage(batch_size=options.batch, row_length=4224),
        "contextual, rows of 8,448": ContextualStage(batch_size=options.batch, row_length=8448, slots=128),
    }
    with tempfile.TemporaryDirectory() as temporary:
        tokens = pathlib.Path(temporary)
        write_tables(options.folder, tokens)
        results = {name: measure(stage, tokens, options.hosts, options.devices) for name, stage in stages.items()}
    settings = {name: getattr(options, name) for name in ("batch", "hosts", "devices")}
    report = settings | {"batches": BATCHES, "vocabulary": VOCABULARY, "stages": results}
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def write_tables(folder: pathlib.Path, tokens: pathlib.Path) -> None:
    sets = {path.name: str(path) for path in sorted((folder / "retrieval").iterdir())}
    texts = {path.name.partition(".")[0]: str(path) for path in sorted((folder / "text").glob("*.jsonl.gz"))}
    sources = [Source(name, "text", path) for name, path in texts.items()]
    sources += [Source(name, kind, path, format="beir") for name, path in sets.items() for kind in ("text", "pair")]
    sources += [Source(name, "contextual", path, format="beir") for name, path in sets.items() if has_parents(path)]
    sources += [Source(name, "triplet", write_triplets(tokens, name, path)) for name, path in sets.items()]
    raw = (text for source in sources if source.kind == "text" for text in texts_of(source))
    vocabulary = train_vocabulary(raw, tokens / "vocabulary.model", VOCABULARY, sample_bytes=4_000_000)
    tokenize_sources(sources, vocabulary, tokens, LENGTHS)


def texts_of(source: Source) -> Iterator[str]:
    for shard in source.shards():
        yield from (example["text"] for example in source.examples(shard, BadRows(source.name)))


def has_parents(path: str) -> bool:
    source = Source("any", "contextual", path, format="beir")
    return any(len(example["chunks"]) > 1 for example in source.examples(path, BadRows("any")))


def write_triplets(folder: pathlib.Path, name: str, path: str) -> str:
    """Pairs of a set with other documents of it as negatives, as many as training has of mined ones."""
    pairs = [one for one in Source(name, "pair", path, format="beir").examples(path, BadRows(name))]
    generator = np.random.default_rng(0)
    target = folder / f"{name}.jsonl"
    with target.open("w", encoding="utf-8") as file:
        for pair in pairs:
            others = [pairs[place]["positive"] for place in generator.integers(len(pairs), size=NEGATIVES)]
            row = {"query": pair["query"], "positive": pair["positive"], "negatives": others}
            file.write(json.dumps(row) + "\n")
    return str(target)


def measure(stage, tokens: pathlib.Path, hosts: int, devices: int) -> dict[str, float]:
    spec = stage.batch
    examples = Examples(open_tables(tokens / FOLDERS[spec.kind], kind=spec.kind), None, spec.batch_size, seed=0)
    group_spec = spec.part(hosts)
    filled, multiple = examples.sequences(group_spec, multiple_of=1), multiple_for(hosts, devices)
    sequences = {group: -(-rows // multiple) * multiple for group, rows in filled.items()}
    rows, fills, cut, packed_tokens = 0, [], 0, 0
    for batch in range(BATCHES):
        selection = examples.select(batch * spec.batch_size + np.arange(spec.batch_size))
        rows = hosts * sequences[selection.group]
        metrics = []
        for host in range(hosts):
            part = slice(host * group_spec.batch_size, (host + 1) * group_spec.batch_size)
            own = Selection(selection.table[part], selection.row[part], selection.group)
            packed = examples.pack(group_spec, own, filled[selection.group])
            metrics.append(padded(packed, sequences[selection.group], examples.pad_id).metrics)
        fills.append(float(np.mean([one["fill"] for one in metrics])))
        cut += sum(one["cut_tokens"] for one in metrics)
        packed_tokens += sum(one["tokens"] for one in metrics)
    return {
        "rows": rows,
        "fill": round(float(np.mean(fills)), 4),
        "least_fill": round(min(fills), 4),
        "cut_share": round(cut / (cut + packed_tokens), 6),
    }


if __name__ == "__main__":
    main()
