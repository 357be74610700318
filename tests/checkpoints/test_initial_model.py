"""A recipe that starts from an imported model: its weights, its vocabulary, its configuration made bidirectional."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.hf_folder import write_source
from helpers.python_code import write_packages

from pplx_jax.checkpoints.huggingface.reader import read_model
from pplx_jax.checkpoints.initial_model import load_weights, model_to_train
from pplx_jax.checkpoints.model_folder import load_config, load_model
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.export.import_hf import import_hf
from pplx_jax.kernels import platform
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Training
from pplx_jax.training.train_stage import train

pytestmark = pytest.mark.slow

STAGES = ("diffusion", "pair")
SMALL = (
    "run.model=None",
    "run.stages=[@diffusion/Training(), @pair/Training()]",
    "PythonCorpus.held_out=('gamma',)",
    *(f"{stage}/Training.steps=2" for stage in STAGES),
    # At this rate nothing moves, so that what the stage leaves is what it started from.
    "diffusion/Optimizer.peak_learning_rate=0.0",
    "Logging.every_steps=1",
    "Optimizer.warmup_steps=0",
    "pair/Optimizer.warmup_steps=0",
    "DiffusionStage.batch_size=8",
    "PairStage.batch_size=8",
    "PairStage.row_length=256",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "model"
    import_hf(source, folder, mask_token="<think>", no_parity=True)
    return folder


def command(packages, workdir, initial, *params):
    bindings = [*SMALL, f"PythonCorpus.roots=('{packages}',)", f"run.initial='{initial}'", *params]
    flags = [f"--gin_param={binding}" for binding in bindings]
    return ["run", "--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("code"), ("alpha", "beta", "gamma"))


@pytest.mark.long
def test_a_run_from_an_import(imported, packages, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert cli.main(command(packages, workdir, imported)) == cli.DONE
    err = capsys.readouterr().err
    assert err.count(f"starting from the weights in {imported}") == 1
    assert err.count(f"pair: starting from the stage in {workdir / 'diffusion'}") == 1

    jax.tree.map(np.testing.assert_array_equal, load_params(workdir / "diffusion"), load_params(imported))
    leaves = zip(*(jax.tree.leaves(load_params(folder)) for folder in (workdir / "pair", imported)), strict=True)
    assert any(not np.array_equal(ours, theirs) for ours, theirs in leaves)
    assert not load_config(workdir / "diffusion").causal and load_config(imported).causal
    assert not (workdir / "phases" / "vocabulary.json").exists()
    for folder in (workdir / "data", workdir / "diffusion", workdir / "pair"):
        vocabulary = load_vocabulary(folder)
        assert vocabulary.fingerprint == load_vocabulary(imported).fingerprint
        assert vocabulary.mask == "<think>"
    for stage in STAGES:
        assert [row["step"] for row in read_metrics(workdir / stage / "metrics.jsonl")] == [1, 2]
    results = json.loads((workdir / "results.json").read_text())
    # The diffusion stage has a learning rate of 0: it is the imported model with the mask removed.
    assert results["initial"]["int8"] == results["diffusion"]["int8"] != results["random"]["int8"]
    assert [(row["of"], row["over"]) for row in results["gains"]][0] == ("diffusion", "initial")
    loss = results["diffusion"]["masked_tokens"]["0.5"]["loss"]
    assert loss["before"] == loss["after"] > 1


def test_a_recipe_of_other_sizes_is_refused_before_anything_is_written(imported, packages, tmp_path, capsys):
    words = command(packages, tmp_path / "run", imported, "run.model=@Qwen3Config()", "VOCABULARY=350")
    assert cli.main(words) == cli.BAD_INPUT
    err = capsys.readouterr().err
    assert "width is 512, not 48" in err and "bind run.model = None" in err
    assert not (tmp_path / "run").exists()


class TestConfiguration:
    def test_it_is_the_folders_made_bidirectional(self, source, imported):
        found = load_config(imported)
        assert found.causal
        expected = dataclasses.replace(found, causal=False)
        assert model_to_train(None, imported) == model_to_train(None, source) == expected

    def test_the_recipes_mask_and_numerics_win(self, imported):
        bound = dataclasses.replace(load_config(imported), dtype="bfloat16", remat=False, max_length=64)
        assert model_to_train(bound, imported) == bound

    def test_an_automatic_precision_is_chosen_by_the_platform(self, imported, monkeypatch):
        automatic = dataclasses.replace(load_config(imported), dtype="auto")
        for flags, dtype in (({"avx512f", "amx_bf16"}, "bfloat16"), ({"avx512f", "avx512_bf16"}, "float32")):
            monkeypatch.setattr(platform, "_cpu_flags", lambda flags=flags: frozenset(flags))
            assert model_to_train(automatic, None, "cpu").dtype == model_to_train(automatic, imported).dtype == dtype
            assert model_to_train(automatic, None, "tpu").dtype == "bfloat16"
        monkeypatch.setattr(platform, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        assert model_to_train(automatic, None, "cpu").dtype == "float32"

    def test_neither_is_refused(self, tmp_path):
        with pytest.raises(BadInput, match=r"bind run\.model"):
            model_to_train(None, None)
        with pytest.raises(BadInput, match="does not exist"):
            model_to_train(None, tmp_path / "nowhere")


class TestOrderOfStarts:
    """1 the stage's own checkpoint, 2 an earlier stage, 3 initial weights, 4 random numbers."""

    @pytest.fixture
    def start(self, source, tmp_path, monkeypatch):
        """Trains steps that change nothing, with these sources; gives the parameters that are left."""
        config, vocabulary = model_to_train(None, source), load_vocabulary(source)
        table = tiny.tiny_tables(tmp_path / "tokens", vocabulary)["diffusion"]
        still = jax.jit(lambda state, batch: (state, {"loss": jnp.float32(0), "skipped": state.skipped}))
        monkeypatch.setattr("pplx_jax.training.train_stage.make_step", lambda *_, **__: still)

        def run(folder, **sources):
            training = Training(tiny.STAGES["diffusion"], tiny.OPTIMIZER, steps=1)
            train(folder, training, config, table, vocabulary, mesh=Mesh(), seed=0, **sources)
            return load_params(folder)

        return run

    def test_each_yields_to_the_one_before(self, start, source, tmp_path):
        scratch = start(tmp_path / "scratch")
        weights = start(tmp_path / "weights", initial=source)
        self.assert_equal(weights, read_model(source).params)
        assert not np.array_equal(scratch["embed"]["embedding"], weights["embed"]["embedding"])
        earlier = start(tmp_path / "earlier", start_from=tmp_path / "scratch", initial=source)
        self.assert_equal(earlier, scratch)
        (tmp_path / "earlier" / "finished.json").unlink()
        resumed = start(tmp_path / "earlier", start_from=tmp_path / "weights", initial=source)
        self.assert_equal(resumed, scratch)

    def assert_equal(self, one, two):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_weights_of_a_hugging_face_folder_and_of_its_import_are_the_same(source, imported):
    mesh, config = Mesh().build(), load_config(imported)
    one, two = load_weights(source, config, mesh), load_weights(imported, config, mesh)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    jax.tree.map(np.testing.assert_array_equal, one, load_model(imported).params)
    with pytest.raises(BadInput, match="layers is 2, not 3"):
        load_weights(source, dataclasses.replace(config, layers=2), mesh)
