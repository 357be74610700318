"""Models of others: a tiny BERT that sentence-transformers saved, scored as its own library encodes."""

import json
import shutil

import numpy as np
import pytest

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.sources.corpus_writer import write_beir
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.inference.sentence_transformer import SentenceTransformerEncoder, is_foreign
from pplx_jax.kernels.quantization import quantize

pytestmark = pytest.mark.slow

TEXTS = ["read a file", "write an index line by line", ""]
PROMPTS = {"query": "query: ", "passage": "passage: "}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(The folder, the library's own model of it)."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [CLS] [SEP] [UNK] read write a an file index line by query passage :".split()
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **special).save_pretrained(folder / "raw")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)).save_pretrained(folder / "raw")
    parts = [modules.Transformer(str(folder / "raw")), modules.Pooling(16), modules.Normalize()]
    model = SentenceTransformer(modules=parts, prompts=PROMPTS, device="cpu")
    model.save(str(folder / "model"))
    return folder / "model", model


@pytest.fixture(scope="module")
def encoder(saved):
    return load_encoder(saved[0])


def test_a_version_that_runs_code_of_the_folder_is_refused(saved, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "5.4.1")
    with pytest.raises(BadInput, match=r"5.4.1 runs code of the folder .*pip install 'sentence-transformers>=6'"):
        load_encoder(saved[0])


def test_vectors_are_the_librarys_with_its_prompts(saved, encoder):
    model = saved[1]
    assert isinstance(encoder, SentenceTransformerEncoder)
    queries = model.encode(["query: " + text for text in TEXTS])
    documents = model.encode(["passage: " + text for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), queries, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS), documents, atol=1e-6)
    assert not np.allclose(queries, documents, atol=1e-3)
    assert (encoder.dims, encoder.config.max_length, encoder.config.dtype) == (16, 12, "float32")
    np.testing.assert_array_equal(encoder.encode(TEXTS, quantization="ubinary", dims=8),
                                  quantize(encoder.encode(TEXTS)[:, :8], "ubinary"))  # fmt: skip
    assert encoder.encode([]).shape == (0, 16)


def test_prompts_may_be_given(saved, encoder):
    folder, model = saved
    other = load_encoder(folder, query_prompt="read: ")
    np.testing.assert_allclose(other.encode_queries(TEXTS), model.encode(["read: " + t for t in TEXTS]), atol=1e-6)
    np.testing.assert_array_equal(other.encode(TEXTS), encoder.encode(TEXTS))
    assert other.fingerprint != encoder.fingerprint == load_encoder(folder).fingerprint
    none = load_encoder(folder, query_prompt="", document_prompt="")
    np.testing.assert_allclose(none.encode_queries(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_long_texts_are_refused_or_cut(encoder):
    # 12 tokens: two special ones, "passage", ":", and eight words.
    assert encoder.count_tokens(["read a file", ""]).tolist() == [3, 0]
    encoder.encode(["a " * 8])
    with pytest.raises(BadInput, match="text 1 has 13 tokens, the model takes 12"):
        encoder.encode(["a", "a " * 9])
    cut = encoder.encode(["a " * 9], overflow="truncate")
    np.testing.assert_allclose(cut, encoder.encode(["a " * 8]), atol=1e-6)


def test_a_shorter_limit_may_be_chosen(saved, encoder):
    short = load_encoder(saved[0], max_length=6)  # two words
    np.testing.assert_allclose(short.encode(["a b c"], overflow="truncate"), encoder.encode(["a b"]), atol=1e-6)
    with pytest.raises(BadInput, match="max_length=13: the model takes 12 tokens"):
        load_encoder(saved[0], max_length=13)


def test_what_it_was_not_trained_for_is_refused(encoder):
    for options, line in (
        ({"quantization": "int8"}, "'int8' is not one of none, binary, ubinary, which this model supports"),
        ({"overflow": "split"}, "give 'truncate'"),
    ):
        with pytest.raises(BadInput, match=line):
            encoder.encode(TEXTS, **options)
    with pytest.raises(BadInput, match="late chunking"):
        encoder.encode_documents([TEXTS])


def test_the_folder_says_whose_model_it_is(saved, tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    shutil.copy(saved[0] / "modules.json", ours)
    (ours / "config.json").write_text('{"model_type": "bidirectional_pplx_qwen3"}')
    assert is_foreign(saved[0]) and not is_foreign(ours) and not is_foreign(tmp_path / "nothing")
    shutil.copytree(saved[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="sentence-transformers cannot open"):
        load_encoder(tmp_path / "model")


def test_eval_takes_it_as_it_is(saved, tmp_path, capsys):
    ids = ["d0", "d1"]
    write_beir(tmp_path / "set", RetrievalSet(ids, TEXTS[:2], ids, [0, 0], ["q"], ["read file"], {"q": {"d0": 1}}))
    arguments = ["eval", f"--model={saved[0]}", f"--task={tmp_path / 'set'}", "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"][0]["setting"] == "none" and found["metrics"]["ndcg@10"] in (1.0, 1 / np.log2(3))
    assert cli.main([*arguments, "--quantization=int8"]) == 2
    assert "'int8' is not one of none, binary, ubinary" in json.loads(capsys.readouterr().out)["error"]
    texts = f"--input={tmp_path / 'set' / 'corpus.jsonl'}"
    embed = ["embed", f"--model={saved[0]}", texts, f"--output={tmp_path / 'vectors'}", "--json"]
    assert cli.main(embed) == 2 and not (tmp_path / "vectors").exists()
    assert "'int8' is not one of none, binary, ubinary" in json.loads(capsys.readouterr().out)["error"]
    assert cli.main([*embed, "--quantization=none"]) == 0
    assert cli.main([*arguments, "--context"]) == 0  # no document of this set has a second passage
