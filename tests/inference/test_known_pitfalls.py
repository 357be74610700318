"""What users of the released weights hit, one test a point: here it does not happen."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import urllib.request

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import tiny
from serving.conftest import running

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.inference.embedder import Embedder
from pplx_jax.inference.packed_encoder import in_compute_precision
from pplx_jax.kernels.quantization import unpack_bits
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.embed_file import embed_file

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = ["read the file", "close the index", "write a vector", "open the table"]
LIMIT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> LoadedModel:
    vocabulary = tiny.tiny_vocabulary(tmp_path_factory.mktemp("pitfalls"))
    config = tiny.tiny_config(vocabulary, max_length=LIMIT)
    params = jax.tree.map(np.asarray, initial_params(config, 0))
    return LoadedModel(config=config, vocabulary=vocabulary, params=params, kind="context_v1", stage="contextual")


@pytest.fixture(scope="module")
def model(folder) -> Embedder:
    return Embedder(folder)


def with_dtype(folder: LoadedModel, dtype: str) -> LoadedModel:
    return dataclasses.replace(folder, config=dataclasses.replace(folder.config, dtype=dtype))


# Packages that take seconds to import. Encoding needs none of them: in a fresh process they would be most of the wait.
HEAVY = {"transformers", "torch", "tensorflow", "seqio", "sentence_transformers", "pandas", "pyarrow", "scipy"}
HEAVY |= {"apache_beam", "tensorflow_datasets", "huggingface_hub", "faiss", "tensorboard", "matplotlib", "grain"}


def test_breakage_with_transformers_releases(folder, tmp_path):
    # Encoding needs no transformers of any release, in Python or by the verb ...
    save_model(tmp_path / "model", folder.config, folder.vocabulary, folder.params, stage="pair")
    (tmp_path / "texts.jsonl").write_text('{"text": "read the file"}\n')
    program = (
        "import json, sys\n"
        "from pplx_jax import Embedder\n"
        "from pplx_jax.cli.main import main\n"
        "shape = Embedder.load(sys.argv[1] + '/model').encode(['read the file']).shape\n"
        "done = main(['embed', '--model', sys.argv[1] + '/model', '--input', sys.argv[1] + '/texts.jsonl',\n"
        "             '--output', sys.argv[1] + '/vectors', '--json'])\n"
        "print()\n"
        "print(json.dumps([shape, done, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shape, done, imported = json.loads(said[-1])
    assert shape == [1, tiny.WIDTH] and done == 0 and json.loads(said[0])["count"] == 1
    assert {"jax", "orbax", "pplx_jax"} <= set(imported) and not HEAVY & set(imported)
    # ... and the exported code builds its mask itself, without the helpers whose signatures change.
    exported = sorted((ROOT / "pplx_jax" / "export" / "torch_model").glob("*.py"))
    assert exported
    for path in exported:
        source = path.read_text(encoding="utf-8")
        assert "masking_utils" not in source and "create_causal_mask" not in source, path


def test_nan_in_float16(folder):
    with pytest.raises(BadInput, match="dtype='float16' is not one of auto, float32, bfloat16"):
        with_dtype(folder, "float16")
    # Activations past float16's range, as deep layers of the released weights have them, are finite in bfloat16.
    large = jax.tree.map(np.copy, folder.params)
    large["embed"]["embedding"] *= 1e7
    large["layers"]["mlp"]["down"]["kernel"] *= 1e7
    assert np.abs(large["embed"]["embedding"]).max() > np.finfo(np.float16).max
    vectors = Embedder(dataclasses.replace(with_dtype(folder, "bfloat16"), params=large)).encode(
        TEXTS, quantization="none"
    )
    assert np.isfinite(vectors).all() and np.abs(vectors).max(axis=1).min() > 0


def test_float32_only_weights(folder):
    half = with_dtype(folder, "bfloat16")
    expected = Embedder(half).encode(TEXTS, quantization="none")
    # Weights that come in bfloat16 are taken as they are. Weights in float32 are kept in half of their bytes, but on a
    # CPU, where every call would convert them.
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16) if leaf.ndim > 2 else leaf, folder.params)
    np.testing.assert_allclose(
        Embedder(dataclasses.replace(half, params=rounded)).encode(TEXTS, quantization="none"), expected, atol=0.02
    )

    def size(params) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    assert size(in_compute_precision(folder.params, "bfloat16")) < 0.52 * size(folder.params)
    assert size(Embedder(half)._encoder._model) == size(folder.params)


def test_silent_truncation(model, tmp_path, capsys):
    too_long = "read " * (2 * LIMIT)
    with pytest.raises(BadInput, match=r"text 1 has \d+ tokens, the model takes 128"):
        model.encode(["read", too_long])
    with pytest.raises(BadInput, match=r"document 1 has \d+ tokens, the model takes 128"):
        model.encode_documents([["read"], ["write", too_long]])
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("read", too_long)))
    with pytest.raises(BadInput, match="too long: 1 of 2 rows, the first is '2' in line 2"):
        embed_file("model", source, tmp_path / "out", encoder=model)
    assert "line 2" in capsys.readouterr().err
    # Asked for, it is split: a word at its very end counts.
    ends = model.encode([too_long + "vector", too_long + "index"], quantization="none", overflow="split")
    assert np.abs(ends[0] - ends[1]).max() > 0
    # Number out is number in.
    assert [len(found) for found in model.encode_documents([TEXTS, [], [too_long]], overflow="split")] == [4, 0, 1]


def test_three_float_conventions(model):
    v, tanh = (model.encode(TEXTS, quantization=name) for name in ("none", "tanh"))
    integers = model.encode(TEXTS)
    assert (v.dtype, tanh.dtype, integers.dtype) == (np.float32, np.float32, np.int8)
    np.testing.assert_allclose(tanh, np.tanh(v), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(integers, np.rint(127 * tanh))
    assert np.abs(v - tanh).max() > 0.01  # they are three


def test_two_bit_orders(model):
    signs = model.encode(TEXTS, quantization="binary")
    packed = {order: model.encode(TEXTS, quantization="ubinary", bit_order=order) for order in ("big", "little")}
    assert (packed["big"] != packed["little"]).any()
    for order, bits in packed.items():
        np.testing.assert_array_equal(unpack_bits(bits, order), signs)
    assert packed["big"][0, 0] >> 7 == (signs[0, 0] > 0) and packed["little"][0, 0] & 1 == (signs[0, 0] > 0)


def test_which_model_encodes_the_query_of_the_context_model(model):
    assert model.kind == "context_v1"
    as_documents = np.concatenate(model.encode_documents([[text] for text in TEXTS]))
    np.testing.assert_array_equal(model.encode_queries(TEXTS), as_documents)


def test_grouped_chunks_are_served(model):
    documents = [TEXTS[:3], TEXTS[3:]]
    with running(model) as url:
        body = json.dumps({"input": documents, "model": "tiny"}).encode()
        with urllib.request.urlopen(f"{url}/v1/contextualizedembeddings", body) as reply:
            groups = json.load(reply)["data"]
    assert [len(group["data"]) for group in groups] == [3, 1]
    for group, expected in zip(groups, model.encode_documents(documents), strict=True):
        found = np.array([chunk["embedding"] for chunk in group["data"]])
        assert np.abs(found - expected.astype(np.int32)).max() <= 1
