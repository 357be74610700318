"""An index of a few texts, made by the steps that a user takes."""

import json

from helpers.word_encoder import WordEncoder
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file

ROWS = [
    {"id": "a", "text": "read a file", "path": "io.py", "line": 3},
    {"id": "b", "text": "sort a list"},
    {"id": "c", "text": "sort a list"},
    {"id": "d", "text": ""},
    {"id": "e", "chunks": ["close the socket", "open the socket"], "path": "net.py"},
]


def embed(folder, rows, encoder=None, **options):
    """Embeds rows in FOLDER/vectors."""
    folder.mkdir(exist_ok=True)
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    embed_file(folder / "model", source, folder / "vectors", encoder=encoder or WordEncoder(), **options)


def make_index(folder, rows=ROWS, **options):
    """Embeds rows, two a shard, and indexes them in FOLDER/index."""
    embed(folder, rows, **{"shard_size": 2, **options})
    build_index(folder / "vectors", folder / "index")
    return folder / "index"
