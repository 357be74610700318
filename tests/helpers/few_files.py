"""Embeds, indexes, searches and updates hundreds of files with at most 256 open at once. Run as a program: FOLDER."""

import json
import pathlib
import resource
import sys

LIMIT, FILES = 256, 300


def use(folder: pathlib.Path) -> None:
    """Prints the number of vectors and the best hit of each engine."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    from helpers.word_encoder import WordEncoder
    from pplx_jax.retrieval import vespa
    from pplx_jax.retrieval.build_index import build_index
    from pplx_jax.retrieval.embed_file import embed_file
    from pplx_jax.retrieval.search_index import search_index
    from pplx_jax.retrieval.update_index import update_index

    (folder / "texts").mkdir()
    for number in range(FILES):
        (folder / "texts" / f"{number:03d}.jsonl").write_text(
            json.dumps({"id": f"d{number}", "text": f"w{number}"}) + "\n"
        )
    result = embed_file("model", folder / "texts", folder / "vectors", shard_size=1, encoder=WordEncoder())
    build_index(folder / "vectors", folder / "index")
    vespa.build(folder / "vectors", folder / "vespa")
    update_index(folder / "index", embeddings=folder / "vectors")
    hits = {
        engine: search_index(folder / "index", "w77", 3, engine=engine, encoder=WordEncoder())["hits"][0]["id"]
        for engine in ("faiss", "numpy")
    }
    print(json.dumps({"shards": result["shards"], "fed": len(list((folder / "vespa" / "feed").iterdir())), **hits}))


if __name__ == "__main__":
    use(pathlib.Path(sys.argv[1]))
