"""A retrieval corpus from the Python code of this machine: docstring summaries are queries for the code they describe.

    text.jsonl       {"text", "source"}: windows of modules, docstrings included, for diffusion
    pairs.jsonl      {"query", "document", "source", "path", "line"}: summary, definition without docstrings
    documents.jsonl  {"id", "source", "chunks": [...], "queries": [{"text", "chunk"}]}: modules, by definition
    evaluation/      the held-out packages as a BEIR folder (data/io/beir.py), parent = module
    probes/context/  their methods as a BEIR folder, parent = class: queries name the class, which no method's text does
    search.jsonl     texts for searching: rows of evaluation/corpus.jsonl, and more of the same kind
    counts.json      numbers of kept and dropped items, and a fingerprint of the input

The same interpreter with the same packages gives the same bytes.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput, require
from pplx_jax.core.files import read_json_if_valid, write_json
from pplx_jax.data.sources.corpus import WrittenCorpus
from pplx_jax.data.sources.corpus_writer import corpus_folder, write_retrieval_set, write_rows
from pplx_jax.recipes.corpora.python_classes import context_passages, training_documents
from pplx_jax.recipes.corpora.python_packages import SourceFile, find_files
from pplx_jax.recipes.corpora.python_pairs import Pair, Parsed, Selection, query_key, read_file, select

FORMAT = 3  # to be raised when equal input gives other rows
_FILES_PER_TASK = 16
_PARALLEL_FROM = 256  # files; below, starting processes takes longer than parsing
_REPORT_EVERY = 2000  # files


@dataclasses.dataclass(frozen=True)
class PythonCorpus(WrittenCorpus):
    """Which code is read, and how it is cut.

    Attributes:
        roots: folders whose entries are top-level packages. If empty, the standard library and the site-packages of
            the running interpreter.
        packages: top-level names to read (`python` is the standard library). If empty, all.
        held_out: top-level packages that go to the evaluation set and nowhere else.
        searched: training packages whose definitions also go to `search.jsonl`.
        excluded_packages: top-level names never read. Ours is one, so that editing it does not change results.
        excluded_folders: names of folders never entered.
        excluded_files: a regular expression on file names: tests and generated code.
        max_files: number of files of a training package; a seeded sample of a larger one.
        max_text_bytes: approximate bytes of a training package that go to `text.jsonl`; a seeded sample of files.
        window_characters: longest row of `text.jsonl`; rows end at ends of lines.
        min_characters: shorter definitions and windows are dropped.
        max_characters: longer definitions are cut at an end of line.
        min_chunks, max_chunks: number of definitions in a row of `documents.jsonl`. A larger module is split evenly
            into consecutive documents; a smaller one is in `pairs.jsonl` only.
        named_share: share of the methods in `documents.jsonl` whose query names their class: half of them as
            "Class: summary", half as "Class: name of the method in words". If above 0, methods are in documents of
            their class, which begin with its head, and not in those of the module.
        class_chunks: most chunks of such a document, and of one in `probes/context`. Not more than `Lengths.chunks`, or
            the rest of a document is without the head.
        class_characters: longest document of `probes/context`; other methods of the class are left out.
        other_classes: in `probes/context`, number of other classes that have a method of the same name.
        seed: seed of the samples.
    """

    roots: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ("jax", "jaxlib", "flax")
    searched: tuple[str, ...] = ("python",)
    excluded_packages: tuple[str, ...] = ("pplx_jax",)
    excluded_folders: tuple[str, ...] = ("__pycache__", "_vendor", "site-packages", "test", "tests")
    excluded_files: str = r"(?:test_.*|.*_tests?|conftest|.*_pb2(?:_grpc)?|gen_.*|.*_gen)\.py"
    max_files: int = 1500
    max_text_bytes: int = 4_000_000
    window_characters: int = 2000
    min_characters: int = 40
    max_characters: int = 2400
    min_chunks: int = 2
    max_chunks: int = 16
    named_share: float = 0.0
    class_chunks: int = 8
    class_characters: int = 1800
    other_classes: int = 2
    seed: int = 0

    def __post_init__(self):
        require(0 <= self.named_share <= 1, self, "named_share", "a number from 0 to 1")
        require(self.class_chunks >= 2, self, "class_chunks", "2 or more")

    def build(
        self,
        output: str | os.PathLike[str],
        progress: Callable[[str], None] | None = None,
        *,
        workers: int = 2,
    ) -> dict[str, Any]:
        """Writes the corpus folder, completely or not at all, and returns its counts. It is kept if it is up to date.

        Args:
            output: the folder. An older corpus in it is replaced.
            progress: called with lines to show.
            workers: number of processes that parse; the result does not depend on it.

        Raises:
            BadInput: no package is found, or none is left to train or to evaluate on.
        """
        output = pathlib.Path(output)
        report = progress or (lambda line: None)
        files, gives_text = _choose(self)
        fingerprint = _fingerprint(self, files)
        counts = _existing_counts(output)
        if counts.get("fingerprint") == fingerprint:
            report(f"{output} is up to date")
            return counts
        parsed: list[Parsed | None] = []
        for result in _parse(self, files, gives_text, workers):
            parsed.append(result)
            if len(parsed) % _REPORT_EVERY == 0 or len(parsed) == len(files):
                report(f"read {len(parsed)} of {len(files)} Python files")
        with corpus_folder(output) as folder:
            selection = select(files, parsed, self.held_out)
            counts = {
                "packages": len({file.source for file in files}),
                "files": len(files),
                "unparsable_files": parsed.count(None),
                "definitions": sum(result.found for result in parsed if result),
                **_write(self, selection, list(zip(files, parsed, strict=True)), folder),
                **selection.dropped,
                "fingerprint": fingerprint,
            }
            write_json(folder / "counts.json", counts)
        return counts


def _choose(config: PythonCorpus) -> tuple[list[SourceFile], list[bool]]:
    """Returns the files to read, and for each whether it gives raw text. Large training packages are sampled."""
    packages = find_files(
        config.roots,
        packages=config.packages,
        excluded_packages=config.excluded_packages,
        excluded_folders=config.excluded_folders,
        excluded_files=config.excluded_files,
    )
    held_out = [source for source in packages if source in config.held_out]
    if not held_out or len(held_out) == len(packages):
        found = ", ".join(list(packages)[:8]) + (", ..." if len(packages) > 8 else "")
        raise BadInput(
            f"no package to {'train' if held_out else 'evaluate'} on: of the packages found ({found}), "
            "held_out must name some and not all"
        )

    def rank(file: SourceFile) -> bytes:
        return hashlib.blake2b(f"{config.seed} {file.path}".encode(), digest_size=8).digest()

    files, gives_text = [], []
    for source, members in packages.items():
        if source in held_out:
            files += members
            gives_text += [False] * len(members)
            continue
        drawn = sorted(members, key=rank)[: config.max_files]
        before = itertools.accumulate((file.size for file in drawn), initial=0)
        text = {file.path: size < config.max_text_bytes for file, size in zip(drawn, before, strict=False)}
        files += [file for file in members if file.path in text]
        gives_text += [text[file.path] for file in members if file.path in text]
    return files, gives_text


def _fingerprint(config: PythonCorpus, files: Sequence[SourceFile]) -> str:
    listing = [(file.source, file.path, file.size) for file in files]
    facts = [FORMAT, sys.version, dataclasses.asdict(config), listing]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _existing_counts(folder: pathlib.Path) -> dict[str, Any]:
    return read_json_if_valid(folder / "counts.json") or {}


def _parse(
    config: PythonCorpus, files: Sequence[SourceFile], gives_text: Sequence[bool], workers: int
) -> Iterator[Parsed | None]:
    """Yields results in the order of the files; None for a file that is not Python."""
    read = functools.partial(
        read_file,
        min_characters=config.min_characters,
        max_characters=config.max_characters,
        window_characters=config.window_characters,
    )
    is_held_out = [file.source in config.held_out for file in files]
    if len(files) < _PARALLEL_FROM or workers < 2:
        yield from map(read, files, gives_text, is_held_out)
        return
    # Not fork: the threads of JAX and TensorFlow do not survive it.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(read, files, gives_text, is_held_out, chunksize=_FILES_PER_TASK)


def _write(
    config: PythonCorpus,
    selection: Selection,
    results: Sequence[tuple[SourceFile, Parsed | None]],
    folder: pathlib.Path,
) -> dict[str, int]:
    """Writes all files except the counts, which it returns."""
    pairs = [
        {
            "query": pair.definition.summary,
            "document": pair.definition.text,
            "source": file.source,
            "path": file.path,
            "line": pair.definition.line,
        }
        for file, members in selection.training
        for pair in members
    ]
    context = _context(config, selection, results)
    asked = {query_key(query) for _, query in context if query}
    documents = list(_documents(config, selection, {file: each.heads for file, each in results if each}, asked))
    write_rows(folder / "text.jsonl", selection.texts)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "documents.jsonl", documents)
    passages = list(_passages(config, selection.evaluation))
    write_retrieval_set(folder / "evaluation", passages)
    if context:
        write_retrieval_set(folder / "probes" / "context", context)
    searched = [(file, members) for file, members in selection.training if file.source in config.searched]
    write_rows(folder / "search.jsonl", (row for row, _ in _passages(config, [*selection.evaluation, *searched])))
    return {
        "pairs_training": len(pairs),
        "pairs_evaluation": len(passages),
        "documents_training": len(documents),
        "documents_evaluation": len({passage["parent"] for passage, _ in passages}),
        "context_queries": len(asked),
        "context_passages": len(context),
        "texts": len(selection.texts),
        "text_characters": sum(len(row["text"]) for row in selection.texts),
    }


def _context(
    config: PythonCorpus, selection: Selection, results: Sequence[tuple[SourceFile, Parsed | None]]
) -> list[tuple[dict[str, Any], str | None]]:
    pairs = [pair for _, members in selection.training for pair in members]
    return context_passages(
        [(file, result) for file, result in results if result and file.source in config.held_out],
        {key for pair in pairs for key in (pair.query, pair.document)},
        chunks=config.class_chunks,
        characters=config.class_characters,
        other_classes=config.other_classes,
    )


def _documents(
    config: PythonCorpus, selection: Selection, heads: Mapping[SourceFile, Mapping[str, str]], asked: set[bytes]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `documents.jsonl`. `asked` has the keys of the queries of `probes/context`."""
    for file, members in selection.training:
        methods = [pair for pair in members if pair.definition.owner] if config.named_share else []
        others = [pair for pair in members if not pair.definition.owner] if config.named_share else members
        for name, part in _parts(file.module, others, config.max_chunks):
            if len(part) >= config.min_chunks:
                queries = [{"text": pair.definition.summary, "chunk": chunk} for chunk, pair in enumerate(part)]
                texts = [pair.definition.text for pair in part]
                yield {"id": name, "source": file.source, "chunks": texts, "queries": queries}
        yield from training_documents(
            file,
            methods,
            heads[file],
            chunks=config.class_chunks,
            named_share=config.named_share,
            held_out=asked,
            seed=config.seed,
        )


def _parts(module: str, pairs: list[Pair], limit: int) -> Iterator[tuple[str, list[Pair]]]:
    """Splits pairs into consecutive parts of at most `limit`, as even as possible, each with its name."""
    count = -(-len(pairs) // limit)
    for part in range(count):
        start, end = (len(pairs) * step // count for step in (part, part + 1))
        yield (module if count == 1 else f"{module}#{part + 1}"), pairs[start:end]


def _passages(
    config: PythonCorpus, modules: Iterable[tuple[SourceFile, list[Pair]]]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields (row of corpus.jsonl, its query)."""
    names: set[str] = set()
    for file, members in modules:
        for parent, part in _parts(file.module, members, config.max_chunks):
            for chunk, pair in enumerate(part):
                definition = pair.definition
                name = f"{file.module}.{definition.name}"
                if name in names:  # overloads, branches, setters
                    name = f"{name}:{definition.line}"
                names.add(name)
                place = {"parent": parent, "chunk": chunk, "path": file.path, "line": definition.line}
                yield {"_id": name, "text": definition.text, **place}, definition.summary
