"""Writers besides metrics.jsonl: TensorBoard, Weights & Biases offline, and how a recipe binds them."""

import dataclasses
import sys

import pytest
from helpers import tiny

from pplx_jax.configuration import load
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.metrics_writers import LoggedStage, TensorBoard, WeightsAndBiases, Writer
from pplx_jax.training.settings import Logging
from pplx_jax.training.train_stage import train

CONFIG = "Training.steps = 4\n"


def training_of(*bindings):
    return load(["gin/recipes/quickstart_scratch.gin"], bindings).arguments["run"]["stages"][0]


def test_a_recipe_binds_writers():
    assert training_of().logging.writers == Logging().writers == (TensorBoard(),)
    two = ("Logging.writers = [@TensorBoard(), @WeightsAndBiases()]", "WeightsAndBiases.project = 'lab'")
    assert tuple(training_of(*two).logging.writers) == (TensorBoard(), WeightsAndBiases(project="lab"))
    assert tuple(training_of("Logging.writers = []").logging.writers) == ()
    with pytest.raises(BadInput, match="WeightsAndBiases.mode='never'; set it to 'online', 'offline' or None"):
        WeightsAndBiases(mode="never")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match=r"WeightsAndBiases needs the module wandb; pip install 'pplx-jax\[wandb\]'"):
        WeightsAndBiases().check()


@pytest.mark.slow
def test_tensorboard_reads_the_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("tensorflow")
    writer = TensorBoard().open(LoggedStage(tmp_path, "pair", 0, CONFIG))
    for step in (1, 2):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [name] = [tag for tag in events.Tags()["tensors"] if tag.endswith("loss")]
    assert [event.step for event in events.Tensors(name)] == [1, 2]


@pytest.mark.long
@pytest.mark.slow
def test_weights_and_biases_records_offline_and_continues_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run" / "pair"
    folder.mkdir(parents=True)
    writer = WeightsAndBiases(project="lab", mode="offline")
    for resume_step in (0, 2):
        opened = writer.open(LoggedStage(folder, "pair", resume_step, CONFIG))
        for step in (resume_step + 1, resume_step + 2):
            opened.write(step, {"loss_of_pairs": 1 / step})
        opened.close()
    identity = read_json(folder / "wandb.json")["id"]
    files = sorted((folder / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files
    recorded = b"".join(file.read_bytes() for file in files)
    for text in (b"loss_of_pairs", b"Training.steps = 4", b"run/pair", b"lab"):
        assert text in recorded, text
    assert b"another_name" not in recorded  # control


@dataclasses.dataclass(frozen=True)
class Listing(Writer):
    """A lab's own writer."""

    seen: list = dataclasses.field(default_factory=list)
    closed: list = dataclasses.field(default_factory=list)

    def open(self, stage):
        self.seen.append(stage)
        return self

    def write(self, step, values):
        self.seen.append((step, values["loss"]))

    def close(self):
        self.closed.append(True)


@pytest.mark.slow
def test_a_stage_writes_to_a_writer_of_ones_own(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    table, own = tiny.tiny_tables(tmp_path, vocabulary)["diffusion"], Listing()
    training = tiny.training("diffusion", steps=2, logging=Logging(every_steps=1, writers=(own,)))
    train(
        tmp_path / "run", training, tiny.tiny_config(vocabulary), table, vocabulary,
        mesh=Mesh(), seed=0, config_text=CONFIG,
    )  # fmt: skip
    assert own.seen[0] == LoggedStage(tmp_path / "run", "diffusion", 0, CONFIG) and own.closed == [True]
    assert own.seen[1:] == [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert not (tmp_path / "run" / "tensorboard").exists()
