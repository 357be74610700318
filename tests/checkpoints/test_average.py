"""The mean of checkpoints against float64, one in memory at a time, and what is refused."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints import average_folders
from pplx_jax.checkpoints.average_folders import average_checkpoints
from pplx_jax.checkpoints.model_folder import describe_model, load_model, save_model
from pplx_jax.checkpoints.saved_params import save_params
from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import named_arrays
from pplx_jax.models.parameters import initial_params

COUNT = 4


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage folder with checkpoints of different parameters."""
    folder = tmp_path_factory.mktemp("run") / "pair"
    vocabulary = tiny.tiny_vocabulary(folder.parent)
    config = tiny.tiny_config(vocabulary, mlp_width=1 << 14)  # 3 MB, far more than Python takes besides
    for step in range(1, COUNT + 1):
        save_params(folder, 10 * step, initial_params(config, seed=step))
    describe_model(folder, config, vocabulary, stage="pair", kind="context_v1")
    return folder


def arrays(folder):
    return dict(named_arrays(load_model(folder).params))


def mean_of(paths):
    every = [arrays(path) for path in paths]
    return {name: np.mean([one[name].astype(np.float64) for one in every], axis=0) for name in every[0]}


def test_the_latest_are_averaged_with_equal_weights(stage, tmp_path):
    result = average_checkpoints([stage], tmp_path / "mean", latest=3)
    taken = [stage / "checkpoints" / str(step) for step in (20, 30, 40)]
    assert result["averaged"] == [str(path) for path in taken]
    found, expected = arrays(tmp_path / "mean"), mean_of(taken)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32), err_msg=name)
    other = mean_of(taken[1:])  # control: two of the three
    assert any(np.abs(other[name] - found[name]).max() > 1e-3 for name in found)
    model = load_model(tmp_path / "mean")
    assert (model.stage, model.kind) == ("pair", "context_v1")
    assert json.loads((tmp_path / "mean" / "model.json").read_text())["averaged_from"] == result["averaged"]
    assert list((tmp_path / "mean" / "checkpoints").glob("*.sha256"))
    average_checkpoints(taken[:2], tmp_path / "mean")  # replaces it
    np.testing.assert_array_equal(arrays(tmp_path / "mean")[name], mean_of(taken[:2])[name].astype(np.float32))


def test_memory_does_not_grow_with_the_number_of_checkpoints(stage, monkeypatch):
    size = sum(array.nbytes for array in arrays(stage).values())

    def peak(count):
        paths = [stage / "checkpoints" / str(10 * step) for step in range(1, count + 1)]
        models = {path: load_model(path) for path in paths}  # what reading itself takes is not counted

        def load(path):
            model = models[path]
            params = {name: dict(part) if isinstance(part, dict) else part for name, part in model.params.items()}
            return dataclasses.replace(model, params=_copied(params))

        monkeypatch.setattr(average_folders, "load_model", load)
        tracemalloc.start()
        average_folders._sum(paths)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return taken

    few, many = peak(2), peak(COUNT)
    assert many < few + 0.1 * size and many < 3.3 * size  # float64 and one in float32


def _copied(tree):
    return {name: _copied(part) if isinstance(part, dict) else np.copy(part) for name, part in tree.items()}


def test_what_is_no_average_of_one_stage_is_refused(stage, tmp_path):
    with pytest.raises(BadInput, match=r"average: 1 checkpoint; give two or more"):
        average_checkpoints([stage], tmp_path / "mean")
    with pytest.raises(BadInput, match=r"--latest=5, and .*pair has 4 checkpoints.*Checkpointing.keep"):
        average_checkpoints([stage], tmp_path / "mean", latest=5)
    with pytest.raises(BadInput, match="2 folders are given"):
        average_checkpoints([stage, stage], tmp_path / "mean", latest=2)
    with pytest.raises(BadInput, match="pair is in the way and no average of checkpoints"):
        average_checkpoints([stage], stage, latest=2)
    model = load_model(stage)
    save_model(tmp_path / "triplet", model.config, model.vocabulary, model.params, stage="triplet", kind="context_v1")
    with pytest.raises(BadInput, match=r"is of the stage pair and .*triplet of triplet; .*or merge two stages"):
        average_checkpoints([stage, tmp_path / "triplet"], tmp_path / "mean")
    turned = dataclasses.replace(model.config, rope_theta=10.0)
    save_model(tmp_path / "turned", turned, model.vocabulary, model.params, stage="pair", kind="context_v1")
    with pytest.raises(BadInput, match=r"average: .*pair and .*turned differ: rope_theta is 1000000\.0 and 10\.0"):
        average_checkpoints([stage, tmp_path / "turned"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
