"""What a hit shows of a described vector."""

from typing import Any

CHUNKS_SHOWN = 3
_HIT_FIELDS = ("id", "text", "path", "line", "document", "chunk", "start", "end")
_CHUNK_FIELDS = ("id", "score", "text", "chunk", "start", "end")


def shown_hit(row: dict[str, Any], score: float) -> dict[str, Any]:
    """Returns the hit of a described vector; path and line are None if the input had none."""
    hit = {"id": row["id"], "score": float(score), "text": row["text"], "path": None, "line": None}
    return hit | {name: row[name] for name in _HIT_FIELDS if name in row}


def shown_chunk(row: dict[str, Any], score: float) -> dict[str, Any]:
    """Returns the entry of a chunk in the list of its document's best chunks."""
    hit = shown_hit(row, score)
    return {name: hit[name] for name in _CHUNK_FIELDS if name in hit}
