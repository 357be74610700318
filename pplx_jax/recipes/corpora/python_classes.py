"""Documents of classes, and queries that name a class and say what one of its methods does ("Dense: attend").

A document is the head of a class (`class Dense(Module):` and what follows up to its first method) and some of its
methods, each a chunk. All chunks are cuts of the source. A method whose text does not name its class can only be told
from its like in other classes by the rest of the document.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from pplx_jax.data.io.set_samples import draw
from pplx_jax.recipes.corpora.python_definitions import Definition, name_in_words, name_words
from pplx_jax.recipes.corpora.python_packages import SourceFile
from pplx_jax.recipes.corpora.python_pairs import Pair, Parsed, query_key


def named_query(definition: Definition, *, in_words: bool = False) -> str:
    """Returns the query "Class: summary" of a method, or with its name in words instead of the summary."""
    words = name_in_words(_last(definition.name)) if in_words else ""
    return f"{_last(definition.owner)}: {words or definition.summary}"


def training_documents(
    file: SourceFile,
    methods: Sequence[Pair],
    heads: Mapping[str, str],
    *,
    chunks: int,
    named_share: float,
    held_out: Set[bytes],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yields rows of `documents.jsonl`: the classes of a file, each part with the head of its class as first chunk.

    Args:
        file: the file.
        methods: its documented methods.
        heads: by qualified name of a class.
        chunks: most chunks of a document.
        named_share: share of the queries that name the class.
        held_out: keys of the queries of `context_passages`; such a query does not name its class.
        seed: of the share.
    """
    members: dict[str, list[Definition]] = {}
    for pair in methods:
        members.setdefault(pair.definition.owner, []).append(pair.definition)
    for owner, definitions in members.items():
        for start in range(0, len(definitions), chunks - 1):
            part = definitions[start : start + chunks - 1]
            queries = []
            for chunk, definition in enumerate(part, 1):
                drawn = draw(seed, "named", file.module, definition.name)
                named = named_query(definition, in_words=drawn < named_share / 2)
                is_named = drawn < named_share and query_key(named) not in held_out
                queries.append({"text": named if is_named else definition.summary, "chunk": chunk})
            name = f"{file.module}.{owner}" + (f"#{start // (chunks - 1) + 1}" if len(definitions) >= chunks else "")
            texts = [heads[owner], *(definition.text for definition in part)]
            yield {"id": name, "source": file.source, "chunks": texts, "queries": queries}


def context_passages(
    modules: Sequence[tuple[SourceFile, Parsed]],
    trained: Set[bytes],
    *,
    chunks: int,
    characters: int,
    other_classes: int,
) -> list[tuple[dict[str, Any], str | None]]:
    """Returns (row of corpus.jsonl, query) of a retrieval set in which context matters. A head has no query.

    A method is in the set if its text does not name its class, as one word or as several; if enough other classes have
    a method of the same name; if no other method has the same query, and the class has one method of this name; and if
    nothing of it is trained on. A document begins with the head of a class, and all of it fits in a short context.

    Args:
        modules: the held-out files.
        trained: keys of all texts and queries of the training packages.
        chunks: most chunks of a document.
        characters: most characters of a document.
        other_classes: number of other classes that must have a method of the same name.
    """
    methods = [(file, result, method) for file, result in modules for method in result.methods]
    asked = collections.Counter(query_key(named_query(method.definition)) for _, _, method in methods)
    defined = collections.Counter((file, method.definition.name) for file, _, method in methods)
    classes_with = collections.Counter(_last(name) for _, name in defined)
    documents: dict[tuple[SourceFile, str], tuple[str, list[Definition]]] = {}
    for file, result, method in methods:
        definition = method.definition
        if (
            classes_with[_last(definition.name)] > other_classes
            and not _names_its_class(definition)
            and asked[query_key(named_query(definition))] == defined[file, definition.name] == 1
            and not {method.query, method.document, query_key(named_query(definition))} & trained
        ):
            head, chosen = documents.setdefault((file, definition.owner), (result.heads[definition.owner], []))
            length = len(head) + sum(len(one.text) for one in (*chosen, definition))
            if length <= characters and len(chosen) + 1 < chunks:
                chosen.append(definition)
    return [
        row
        for (file, owner), (head, chosen) in documents.items()
        if chosen
        for row in _passages(file, owner, head, chosen)
    ]


def _passages(
    file: SourceFile, owner: str, head: str, chosen: Sequence[Definition]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    parent = f"{file.module}.{owner}"
    yield {"_id": parent, "text": head, "parent": parent, "chunk": 0, "path": file.path}, None
    for chunk, definition in enumerate(chosen, 1):
        place = {"parent": parent, "chunk": chunk, "path": file.path, "line": definition.line}
        yield {"_id": f"{file.module}.{definition.name}", "text": definition.text, **place}, named_query(definition)


def _last(name: str) -> str:
    """Returns the last part of a qualified name."""
    return name.rpartition(".")[2]


def _names_its_class(definition: Definition) -> bool:
    """Returns whether the text holds the words of the class's name in a row, however written, also within a word."""
    words = map(re.escape, name_words(_last(definition.owner)))
    return re.search(r"[\W_]*".join(words), definition.text, re.IGNORECASE) is not None
