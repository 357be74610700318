"""Import of Hugging Face folders: bit for bit, as PyTorch computes, whole or refused, in little memory."""

import contextlib
import dataclasses
import io
import json
import shutil
import sys

import numpy as np
import pytest
from helpers import simulated
from helpers.hf_folder import edit_config, read_tensors, write_source

from pplx_jax.checkpoints.huggingface.config import read_source
from pplx_jax.checkpoints.huggingface.name_map import to_torch_layout
from pplx_jax.checkpoints.huggingface.reader import read_model
from pplx_jax.checkpoints.model_folder import load_config, load_model
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.export import import_parity as source_parity
from pplx_jax.export.export_hf import export_hf
from pplx_jax.export.import_hf import import_hf
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import bind

LENGTHS = (1, 2, 7, 200, 2048)
TEXTS = ["read a file", "", "def f(x):\n    return x", "the name <|endoftext|> of a token", "long " * 300]
VARIANTS = {
    "qwen3": {},
    "pplx": {
        "bidirectional": True,
        "prefix": False,
        "sharded": True,
        "hidden_size": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 32,
    },
    "bfloat16": {
        "dtype": "bfloat16",
        "tied": False,
        "sharded": True,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "llama": {"family": "Llama", "sharded": True},
    "qwen2": {"family": "Qwen2", "tied": False, "dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def imported(qwen3, tmp_path_factory):
    """(folder, what the command printed) of the causal model."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["import-hf", str(qwen3), str(folder), "--json"]) == cli.DONE
    return folder, json.loads(printed.getvalue())


def test_the_command_reports_tensors_parity_and_memory(imported):
    _, report = imported
    assert report.keys() == {"tensors", "parity", "peak_bytes"}
    assert report["tensors"] == 2 + 3 * 11
    assert 0.0 < report["parity"]["max_abs_diff"] < 1e-4
    assert report["parity"]["int8_equal_share"] > 0.999


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_again_bit_for_bit(name, tmp_path):
    options = VARIANTS[name]
    dtype, untied = options.get("dtype", "float32"), not options.get("tied", True)
    source = write_source(tmp_path / "source", max_position_embeddings=200, **options)
    assert (len(list(source.glob("*.safetensors"))) > 1) == options.get("sharded", False)
    report = import_hf(source, tmp_path / "model", dtype=dtype)
    assert report["parity"]["max_abs_diff"] < 1e-4
    export_hf(tmp_path / "model", tmp_path / "export", dtype=dtype)
    there, back = read_tensors(source), read_tensors(tmp_path / "export")
    assert ("lm_head.weight" in there) == untied
    assert there.keys() == back.keys()
    for key, tensor in there.items():
        assert tensor.dtype == back[key].dtype
        np.testing.assert_array_equal(tensor, back[key], err_msg=key)


def test_an_import_says_what_the_source_is(qwen3, imported):
    config = load_config(imported[0])
    assert config == load_config(qwen3) == read_model(qwen3).config
    assert config.causal and config.dtype == "float32" and config.rope_theta == 50_000.0
    assert (config.width, config.head_dim, config.query_heads, config.kv_heads) == (48, 16, 6, 2)


def test_weights_in_bfloat16_make_a_model_that_runs_in_it(tmp_path):
    model = read_model(write_source(tmp_path, dtype="bfloat16"))
    assert model.config.dtype == "bfloat16" and model.params["embed"]["embedding"].dtype == np.float32
    assert load_config(tmp_path) == model.config


@pytest.fixture(scope="module")
def torch_model(qwen3):
    import torch
    from transformers import Qwen3Model

    return Qwen3Model.from_pretrained(qwen3, dtype=torch.float32).eval()


@pytest.mark.parametrize("causal", [True, False])
def test_every_layer_computes_what_pytorch_does(qwen3, torch_model, causal):
    import torch

    model = read_model(qwen3)
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, model.config.vocab_size, length) for length in LENGTHS]
    valid = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    tokens = np.zeros(valid.shape, np.int64)
    tokens[valid] = np.concatenate(ids)
    # The whole mask written out: what may look at what.
    seen = valid[:, None, :] & (np.tri(max(LENGTHS), dtype=bool) | (not causal))
    bias = torch.zeros(seen.shape).masked_fill(~torch.tensor(seen), torch.finfo(torch.float32).min)[:, None]
    with torch.inference_mode():
        output = torch_model(torch.tensor(tokens), attention_mask=bias, output_hidden_states=True, use_cache=False)
        states = [torch_model.norm(state) for state in output.hidden_states[1:-1]] + [output.last_hidden_state]
    for depth, expected in enumerate(states, start=1):
        config = dataclasses.replace(model.config, layers=depth, causal=causal)
        layers = _map(model.params["layers"], lambda leaf, depth=depth: leaf[:depth])
        truncated = dataclasses.replace(model, config=config, params={**model.params, "layers": layers})
        ours = source_parity.jax_states(truncated, ids)
        for text, theirs, length in zip(ours, expected.numpy(), LENGTHS, strict=True):
            np.testing.assert_allclose(text, theirs[:length], rtol=0, atol=1e-4)


def _map(tree, function):
    return {name: _map(leaf, function) if isinstance(leaf, dict) else function(leaf) for name, leaf in tree.items()}


@pytest.fixture(scope="module")
def states(qwen3):
    model = read_model(qwen3)
    return source_parity.source_states(qwen3, read_source(qwen3), model.vocabulary, "float32")


def test_states_of_a_causal_source_are_in_both_masks_and_of_mixed_lengths(states):
    assert set(states.hidden) == {True, False}
    assert {1, 2, 7, 40, 200, 600, 2048} <= {len(ids) for ids in states.ids}
    assert np.abs(states.hidden[True][-1] - states.hidden[False][-1]).max() > 0.1


def _perturb(params, path, change):
    *parents, name = path.split(".")
    copy = node = _map(params, np.copy)
    for parent in parents:
        node = node[parent]
    node[name] = change(node[name])
    return copy


def _one_weight(leaf):
    leaf[(0,) * leaf.ndim] += 0.05
    return leaf


@pytest.mark.parametrize(
    "path", ["layers.attention.q.kernel", "layers.attention.k_norm.scale", "layers.mlp.down.kernel", "final_norm.scale"]
)
def test_one_weight_that_is_off_fails_parity(qwen3, states, path):
    model = read_model(qwen3)
    model = dataclasses.replace(model, params=_perturb(model.params, path, _one_weight))
    with pytest.raises(RuntimeError, match=r"\(causal\): hidden states differ by"):
        source_parity.check_import(model, states)


def test_another_rope_base_fails_parity(qwen3, states):
    model = read_model(qwen3)
    config = dataclasses.replace(model.config, rope_theta=10_000.0)
    with pytest.raises(RuntimeError, match="hidden states differ"):
        source_parity.check_import(dataclasses.replace(model, config=config), states)


def test_embeddings_are_held_on_their_own(qwen3, states, monkeypatch):
    # Hidden states that agree say nothing of pooling and quantization.
    monkeypatch.setattr(source_parity, "hidden_difference", lambda *_: 0.0)
    model = read_model(qwen3)
    model = dataclasses.replace(model, params=_perturb(model.params, "final_norm.scale", lambda leaf: leaf * 1.05))
    with pytest.raises(RuntimeError, match="int8 values"):
        source_parity.check_import(model, states)


def test_a_model_that_runs_in_bfloat16_is_held_in_it_too(qwen3, states):
    model = read_model(qwen3)
    half = dataclasses.replace(model, config=dataclasses.replace(model.config, dtype="bfloat16"))
    source_parity._check_cosine(half, states)
    other = dataclasses.replace(states, hidden={True: states.hidden[False]})
    with pytest.raises(RuntimeError, match="the smallest cosine is"):
        source_parity._check_cosine(half, other)


def test_nothing_is_left_where_parity_fails(qwen3, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("not equal")

    monkeypatch.setattr(source_parity, "check_import", fail)
    with pytest.raises(RuntimeError, match="not equal"):
        import_hf(qwen3, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_embedder_of_the_source_is_one_of_the_import(qwen3, imported):
    one, two = Embedder.load(qwen3), Embedder.load(imported[0])
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.encode(TEXTS, quantization="none"), two.encode(TEXTS, quantization="none"))
    documents = [TEXTS[:3], TEXTS[3:]]
    for first, second in zip(one.encode_documents(documents), two.encode_documents(documents), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "content, pooling",
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "lasttoken"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls"),
        ({"pooling_mode_mean_tokens": True}, None),
        ({"pooling_mode": "mean", "include_prompt": True}, None),
    ],
)
def test_another_pooling_is_said(qwen3, tmp_path, caplog, content, pooling):
    source = shutil.copytree(qwen3, tmp_path / "source")
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps(content))
    for load in (Embedder.load, lambda folder: import_hf(folder, tmp_path / "imported", no_parity=True)):
        caplog.clear()
        load(source)
        said = [record.getMessage() for record in caplog.records if " pool " in record.getMessage()]
        assert len(said) == (pooling is not None)
        assert pooling is None or f"its authors pool {pooling} " in said[0]


def test_tokens_are_named(qwen3, imported, tmp_path):
    vocabulary = load_model(imported[0]).vocabulary
    assert (vocabulary.mask, vocabulary.separator) == ("<|fim_pad|>", "<|endoftext|>")
    named = {"mask_token": "<think>", "separator_token": "<|im_end|>", "pad_token": "<|im_start|>"}
    import_hf(qwen3, tmp_path / "model", **named, no_parity=True)
    named = load_model(tmp_path / "model").vocabulary
    assert (named.mask, named.separator) == ("<think>", "<|im_end|>")
    assert named.mask_id not in (vocabulary.mask_id, *named.encode("<think>"))
    with pytest.raises(BadInput, match="has no token '<mask>' for the mask"):
        import_hf(qwen3, tmp_path / "other", mask_token="<mask>")


def test_a_head_of_its_own_predicts_the_tokens(tmp_path):
    import torch
    from transformers import Qwen3ForCausalLM

    source = write_source(tmp_path / "source", tied=False)
    import_hf(source, tmp_path / "model", no_parity=True)
    model = load_model(tmp_path / "model")
    assert not model.config.tied and model.config == load_config(source)
    ids = [np.arange(5, 25, dtype=np.int32)]
    with torch.inference_mode():
        logits = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32).eval()(torch.tensor(ids[0][None])).logits
    encoder = bind(model.config, model.params)
    ours = source_parity.jax_states(model, ids)[0] @ np.asarray(encoder.output_table).T
    np.testing.assert_allclose(ours, logits[0].numpy(), atol=1e-4, rtol=0)
    assert np.abs(ours - source_parity.jax_states(model, ids)[0] @ model.params["embed"]["embedding"].T).max() > 0.1


def test_a_head_that_the_configuration_denies_is_refused(tmp_path):
    source = write_source(tmp_path / "source", tied=False)
    edit_config(source, tie_word_embeddings=True)
    with pytest.raises(BadInput, match="lm_head.weight differs from the embedding table, but config.json sets tie"):
        import_hf(source, tmp_path / "model")


class TestDamage:
    """A folder with everything that can be wrong with it is refused in one line."""

    @pytest.fixture
    def source(self, tmp_path):
        return write_source(tmp_path / "source")

    def rewrite(self, source, change):
        from safetensors.numpy import load_file, save_file

        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file(tensors, source / "model.safetensors")

    def refusal(self, source, tmp_path, capsys) -> str:
        assert cli.main(["import-hf", str(source), str(tmp_path / "model")]) == cli.BAD_INPUT
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("pplx-jax: error:"))
        assert not (tmp_path / "model").exists()
        return line

    def test_all_tensors_at_fault_are_named(self, source, tmp_path, capsys):
        def change(tensors):
            del tensors["model.norm.weight"]
            tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(4, np.float32)
            tensors["classifier.weight"] = np.zeros(4, np.float32)
            tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((3, 48), np.float32)

        self.rewrite(source, change)
        line = self.refusal(source, tmp_path, capsys)
        assert "model.norm.weight is missing" in line
        assert "model.layers.0.self_attn.q_proj.bias is left over" in line
        assert "classifier.weight is left over" in line
        assert "model.layers.1.mlp.up_proj.weight has shape (3, 48), not (80, 48)" in line

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite(self, source, tmp_path, value):
        self.rewrite(source, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].__setitem__((2, 3), value))
        with pytest.raises(BadInput, match=r"tensor layers\.1\.mlp\.up_proj\.weight is non-finite"):
            import_hf(source, tmp_path / "model", no_parity=True)
        assert not (tmp_path / "model").exists()
        with pytest.raises(BadInput, match="is non-finite"):
            Embedder.load(source)

    def test_a_truncated_file(self, source, tmp_path, capsys):
        path = source / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "has wrong offsets: the file is truncated or damaged" in self.refusal(source, tmp_path, capsys)

    def test_pickles_are_never_opened(self, source, tmp_path, capsys):
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
        line = self.refusal(source, tmp_path, capsys)
        assert "weights are pickles (pytorch_model.bin)" in line and "run code" in line

    def test_no_tokenizer(self, source, tmp_path, capsys):
        (source / "tokenizer.json").unlink()
        assert "has no tokenizer.json" in self.refusal(source, tmp_path, capsys)

    def test_a_tokenizer_of_another_model(self, tmp_path, capsys):
        source = write_source(tmp_path / "source", vocab_size=200)
        assert "use the tokenizer of the same model" in self.refusal(source, tmp_path, capsys)

    def test_a_feature_that_is_not_ours(self, source, tmp_path, capsys):
        edit_config(source, attention_bias=True, num_key_value_heads=None)
        line = self.refusal(source, tmp_path, capsys)
        assert "attention_bias is True" in line and "num_key_value_heads is None, not a size" in line

    def test_a_missing_package(self, source, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        line = self.refusal(source, tmp_path, capsys)
        assert "needs the module torch; pip install 'pplx-jax[convert]', or give --no_parity" in line

    def test_an_output_in_the_way(self, source, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "thesis.txt").write_text("")
        with pytest.raises(BadInput, match="in the way"):
            import_hf(source, tmp_path / "model")
        with pytest.raises(BadInput, match="does not exist"):
            import_hf(tmp_path / "none", tmp_path / "other")
        with pytest.raises(BadInput, match="dtype='int8'"):
            import_hf(source, tmp_path / "other", dtype="int8")


_PEAK = """
import json, pathlib, sys
import numpy as np
from helpers.hf_folder import edit_config
from pplx_jax.export.import_hf import import_hf
from pplx_jax.checkpoints.huggingface.name_map import torch_shapes
from pplx_jax.checkpoints.huggingface.config import read_source
from pplx_jax.export.weights import write_weights

folder = pathlib.Path(sys.argv[1])
sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 10, "vocab_size": 30000}
edit_config(folder, tie_word_embeddings=True, **sizes)
shapes = torch_shapes(read_source(folder).config)
generator = np.random.default_rng(0)
tensors = {key: generator.standard_normal(shape, np.float32) for key, shape in shapes.items()}
result = sum(tensor.nbytes for tensor in tensors.values())
largest = max(tensor.nbytes for tensor in tensors.values())
(folder / "model.safetensors").unlink()
write_weights(tensors, folder, dtype="float32", shard_bytes=10**8)
del tensors
report = import_hf(folder, folder / "model", no_parity=True)
print(json.dumps({"result": result, "largest": largest, "peak": report["peak_bytes"]}))
"""


def test_memory_is_that_of_the_result_and_one_tensor(tmp_path):
    bytes_of = json.loads(
        simulated.run("-c", _PEAK, str(write_source(tmp_path, prefix=False)), devices=1).splitlines()[-1]
    )
    slack = 32 << 20
    assert bytes_of["result"] > bytes_of["largest"] + slack  # a second copy would not fit in
    assert 0.9 * bytes_of["result"] < bytes_of["peak"] <= bytes_of["result"] + bytes_of["largest"] + slack


_SHARDED = """
import sys
import jax, numpy as np
from pplx_jax.checkpoints.huggingface.reader import read_model
from pplx_jax.parallel.mesh import Mesh, leaf_sharding

mesh = Mesh(data=2, fsdp=4).build()
asked = []
def sharding(path, shape):
    asked.append(path)
    return leaf_sharding(path, shape, mesh)
placed, host = read_model(sys.argv[1], sharding=sharding).params, read_model(sys.argv[1]).params
jax.tree.map(np.testing.assert_array_equal, placed, host)
assert len(asked) == len(set(asked)) == 13, asked
embedding, scale = placed["embed"]["embedding"], placed["final_norm"]["scale"]
assert len(embedding.sharding.device_set) == 8
assert {shard.data.shape for shard in embedding.addressable_shards} == {(350, 12)}  # a quarter of the width
assert {shard.data.shape for shard in scale.addressable_shards} == {(48,)}
print("placed")
"""


def test_leaves_go_to_their_devices_one_by_one(qwen3):
    assert simulated.run("-c", _SHARDED, str(qwen3)).endswith("placed\n")


def test_reading_gives_what_the_files_hold(qwen3):
    model = read_model(qwen3)
    tensors = read_tensors(qwen3)
    for key, tensor in to_torch_layout(model.params, model.config).items():
        np.testing.assert_array_equal(tensor, tensors[key], err_msg=key)
