"""Files of a data set on the Hugging Face hub as a source, from a server of the hub's protocol on loopback."""

import contextlib
import io
import json
import urllib.parse

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.loopback_server import serving
from huggingface_hub import constants

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.source import Source

COMMIT = "1" * 40
ROWS = 3000


@contextlib.contextmanager
def hub(files):
    """Yields the URL of a hub with the data set lab/web at revision v1, and the list of the bytes that it has sent."""
    sent = []
    about = [{"type": "file", "oid": "0" * 40, "size": len(content), "path": name} for name, content in files.items()]
    about += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"}]

    def answer(method, url, headers, body):
        asked = urllib.parse.urlsplit(url)
        path = urllib.parse.unquote(asked.path)
        if method == "POST":
            text = body.decode()
            paths = json.loads(text)["paths"] if text.startswith("{") else urllib.parse.parse_qs(text).get("paths", [])
            return 200, [one for one in about if one["path"] in paths]
        if path.startswith("/datasets/lab/web/resolve/v1/"):
            content = files[path.removeprefix("/datasets/lab/web/resolve/v1/")]
            first, last = (headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            sent.append(len(part))
            return 206, part
        if path.startswith("/api/datasets/lab/web/tree/v1"):
            below = path.removeprefix("/api/datasets/lab/web/tree/v1").strip("/")
            found = [one for one in about if one["path"].rpartition("/")[0] == below]
            return 200, about if "recursive=true" in asked.query.lower() else found
        if path in ("/api/datasets/lab/web", "/api/datasets/lab/web/revision/v1"):
            return 200, {"id": "lab/web", "sha": COMMIT}
        return 404, {"error": "not here"}, {"X-Error-Code": "RepoNotFound"}

    with serving(answer) as url:
        yield url, sent


def parquet(shard):
    """Row groups of texts and of a large column that no source needs."""
    generator = np.random.default_rng(shard)
    table = pyarrow.table(
        {
            "pages": [generator.bytes(5000) for _ in range(ROWS)],
            "text": [f"text {n} of shard {shard}" for n in range(ROWS)],
        }
    )
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=ROWS // 3, compression="none")
    return file.getvalue()


def test_parquet_files_are_read_in_parts_through_hf_urls(monkeypatch):
    files = {f"data/web-{shard}.parquet": parquet(shard) for shard in range(2)} | {"README.md": b"about"}
    with hub(files) as (url, sent):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        root, path = "hf://datasets/lab", "web@v1/data/*.parquet"
        source = Source("web", "text", path, root=root)
        shards = source.shards()
        assert shards == [f"hf://datasets/lab/web@v1/data/web-{shard}.parquet" for shard in range(2)]
        bad = BadRows("web")
        examples = source.examples(shards[1], bad)
        assert next(examples)["text"] == "text 0 of shard 1"
        size = len(files["data/web-1.parquet"])
        assert 0 < sum(sent) < 0.8 * size
        assert sum(1 for _ in examples) == ROWS - 1 and bad.count == 0
        assert source.digest() == Source("web", "text", path, root=root).digest()
        for missing in ("web@v1/data/*.jsonl", "web@v1/data/other.parquet", "other@v1/data/*.parquet"):
            with pytest.raises(
                BadInput, match=r"(no such file|\(repository not found\).*); check the path of the source"
            ):
                Source("web", "text", missing, root=root).shards()
