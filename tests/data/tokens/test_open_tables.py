"""The tables of a folder: found by source and shard, checked cheaply, hundreds of them with few descriptors."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_writer import write_table

VOCABULARY = types.SimpleNamespace(
    fingerprint="ab" * 32, size=50, pad_id=0, mask_id=2, separator_id=3, path="stub.model"
)


def write_pairs(folder, number):
    features = {
        "query": Ragged.from_arrays([[number], [5, 6]]),
        "document": Ragged.from_arrays([[8], [9, 10]]),
        "document_hash": np.array([1, 2], np.int32),
        "source": np.array([0, 0], np.int32),
    }
    write_table(folder, "pair", VOCABULARY, features, notes={"sources": ["a"]})


def test_a_table_alone_by_source_and_by_shard(tmp_path):
    write_pairs(tmp_path / "alone", 7)
    assert list(open_tables(tmp_path / "alone")) == ["alone"]
    for name in ("whole", "parts/shard-00000-of-00002", "parts/shard-00001-of-00002"):
        write_pairs(tmp_path / "pair" / name, 7)
    (tmp_path / "pair" / ".hidden").mkdir()
    found = open_tables(tmp_path / "pair", kind="pair", vocabulary=VOCABULARY)
    assert {name: len(tables) for name, tables in found.items()} == {"whole": 1, "parts": 2}
    with pytest.raises(BadInput, match="without negatives, which kind triplet has"):
        open_tables(tmp_path / "pair", kind="triplet")
    with pytest.raises(BadInput, match=r"nowhere/manifest.json: no such file"):
        open_tables(tmp_path / "nowhere")


def test_offsets_are_read_by_verify_alone(tmp_path):
    write_pairs(tmp_path / "pair", 7)
    np.save(tmp_path / "pair" / "document.offsets.npy", np.array([0, 5, 3]))
    open_tables(tmp_path / "pair")
    with pytest.raises(BadInput, match=r"document.offsets.npy: offsets decrease; tokenise the corpus again"):
        open_tables(tmp_path / "pair", verify=True)


@pytest.mark.slow
def test_hundreds_of_shards_open_with_few_descriptors(tmp_path):
    shards = 300
    for shard in range(shards):
        write_pairs(tmp_path / "web" / f"shard-{shard:05d}-of-{shards:05d}", shard)
    program = f"""
import json, os, resource
from pplx_jax.data.tokens.open_tables import open_tables
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
(tables,) = open_tables({str(tmp_path)!r}, kind="pair", verify=True).values()
first = [int(table["query"][0][0]) for table in tables]
print(json.dumps([first, len(os.listdir("/proc/self/fd"))]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, descriptors = json.loads(result.stdout)
    assert first == list(range(shards)) and descriptors < 32
