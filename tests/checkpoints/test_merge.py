"""SLERP compared with its formula in float64: per tensor, whole, weights 0 and 1, nearly parallel, opposite."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.checkpoints import merge
from pplx_jax.checkpoints.merge_folders import merge_checkpoints
from pplx_jax.checkpoints.model_folder import save_model, stage_of
from pplx_jax.core import errors
from pplx_jax.models.parameters import initial_params

SHAPES = {"layers": {"mlp": {"kernel": (2, 3, 4)}, "norm": {"scale": (2, 3)}}, "embed": {"embedding": (5, 3)}}


def build(shapes, make):
    return {k: build(v, make) if isinstance(v, dict) else make(v) for k, v in shapes.items()}


def random_tree(seed, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return build(SHAPES, lambda shape: generator.normal(size=shape).astype(dtype))


def flat(tree, prefix=""):
    out = {}
    for name, value in tree.items():
        path = f"{prefix}.{name}" if prefix else name
        out |= flat(value, path) if isinstance(value, dict) else {path: np.asarray(value)}
    return out


def angle_between(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return np.arccos((a @ b) / np.sqrt((a @ a) * (b @ b)))


def reference(a, b, weight, angle):
    """sin((1 - w) theta)/sin theta a + sin(w theta)/sin theta b, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)


def test_by_hand():
    a = {"x": np.array([1.0, 0.0], np.float32), "y": np.array([2.0, 0.0], np.float32)}
    b = {"x": np.array([0.0, 1.0], np.float32), "y": np.array([1.0, np.sqrt(3.0)], np.float32)}
    out = merge.slerp(a, b, 0.5)
    # x: theta 90 degrees: sin 45 / sin 90 = 0.7071068 of each.
    # y: theta 60 degrees: sin 30 / sin 60 = 0.5773503 of each: x (3, 1.7320508) = (1.7320508, 1), length 2.
    np.testing.assert_allclose(out["x"], [0.7071068, 0.7071068], rtol=1e-6)
    np.testing.assert_allclose(out["y"], [1.7320508, 1.0], rtol=1e-6)
    # A third of the way round 90 degrees is 30 degrees: (cos 30, sin 30).
    np.testing.assert_allclose(merge.slerp(a, b, 1 / 3)["x"], [0.8660254, 0.5], rtol=1e-6)
    # Control: the linear mean is shorter, (0.5, 0.5).
    assert np.linalg.norm(out["x"]) > 0.99


def test_half_and_per_tensor_are_the_defaults():
    a, b = random_tree(0), random_tree(1)
    explicit = flat(merge.slerp(a, b, 0.5, per="tensor"))
    for path, value in flat(merge.slerp(a, b)).items():
        np.testing.assert_array_equal(value, explicit[path])


@given(st.integers(0, 2**31), st.floats(0.01, 0.99))
def test_per_tensor_against_float64(seed, weight):
    a, b = random_tree(seed), random_tree(seed + 1)
    out = flat(merge.slerp(a, b, weight))
    left, right = flat(a), flat(b)
    assert out.keys() == left.keys()
    for path, value in out.items():
        angle = angle_between(left[path], right[path])
        expected = reference(left[path], right[path], weight, angle)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-6)
        # |out|^2 = s^2 |a|^2 + r^2 |b|^2 + 2 s r a.b with the two sine ratios s, r.
        s, r = np.sin((1 - weight) * angle) / np.sin(angle), np.sin(weight * angle) / np.sin(angle)
        x, y = (t[path].astype(np.float64).ravel() for t in (left, right))
        squared = s * s * (x @ x) + r * r * (y @ y) + 2 * s * r * (x @ y)
        np.testing.assert_allclose((value.astype(np.float64) ** 2).sum(), squared, rtol=1e-5)


@given(st.integers(0, 2**31), st.floats(0.01, 0.99))
def test_whole_against_float64(seed, weight):
    a, b = random_tree(seed), random_tree(seed + 1)
    out, left, right = flat(merge.slerp(a, b, weight, per="whole")), flat(a), flat(b)
    joined = [np.concatenate([tree[path].ravel() for path in sorted(tree)]) for tree in (left, right)]
    angle = angle_between(*joined)
    apart = 0.0
    for path, value in out.items():
        np.testing.assert_allclose(value, reference(left[path], right[path], weight, angle), rtol=1e-5, atol=2e-6)
        own = reference(left[path], right[path], weight, angle_between(left[path], right[path]))
        apart = max(apart, np.abs(value - own).max())
    assert apart > 1e-4  # control: one angle for all is not an angle for each


@given(st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_equal_lengths_keep_their_length(seed, weight):
    generator = np.random.default_rng(seed)
    a, b = ((x / np.linalg.norm(x)).astype(np.float32) for x in generator.normal(size=(2, 12)))
    out = np.asarray(merge.slerp({"x": a}, {"x": b}, weight)["x"], np.float64)
    np.testing.assert_allclose(np.linalg.norm(out), 1.0, rtol=1e-5)


@pytest.mark.parametrize("per", ["tensor", "whole"])
def test_ends_are_the_ends_to_the_last_bit(per):
    a, b = random_tree(2), random_tree(3)
    b["layers"]["norm"]["scale"] = a["layers"]["norm"]["scale"].copy()  # parallel ones too
    a["embed"]["embedding"][0, 0] = b["embed"]["embedding"][0, 1] = -0.0  # the sign of a zero is a bit too
    for weight, end in ((0.0, a), (1.0, b), (0, a), (1, b)):
        out = flat(merge.slerp(a, b, weight, per=per))
        for path, value in flat(end).items():
            np.testing.assert_array_equal(out[path].view(np.int32), value.view(np.int32))
    assert not np.array_equal(merge.slerp(a, b, 1e-3, per=per)["embed"]["embedding"], a["embed"]["embedding"])


@pytest.mark.parametrize("per", ["tensor", "whole"])
def test_parallel_falls_back_to_linear(per):
    a = random_tree(4)
    b = build(SHAPES, lambda shape: None)
    for group, name in (("layers", "mlp"), ("layers", "norm")):
        b[group][name] = {k: 3 * v for k, v in a[group][name].items()}
    b["embed"] = {"embedding": 3 * a["embed"]["embedding"]}
    out = flat(merge.slerp(a, b, 0.25, per=per))
    for path, value in flat(a).items():  # (1 - w) a + w 3 a = 1.5 a
        np.testing.assert_allclose(out[path], 1.5 * value, rtol=1e-5)
    same = flat(merge.slerp(a, a, 0.3, per=per))
    for path, value in flat(a).items():
        np.testing.assert_allclose(same[path], value, rtol=1e-6)


def test_close_to_parallel_both_sides_agree():
    # Where the fallback takes over, the linear path and the sine path are the same to float32.
    a = np.random.default_rng(5).normal(size=200).astype(np.float32)
    step = np.random.default_rng(6).normal(size=200).astype(np.float32)
    for size in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6):
        b = a + np.float32(size) * step
        exact = reference(a, b, 0.5, max(angle_between(a, b), 1e-7))
        merged = merge.slerp({"x": a}, {"x": b}, 0.5)["x"]
        np.testing.assert_allclose(merged, exact, rtol=2e-3, atol=2e-3 * size)


def test_nearly_parallel_tensors_are_interpolated_linearly(monkeypatch):
    a, b = {"x": np.array([1.0, 0.0], np.float32)}, {"x": np.array([1.0, 1.0], np.float32)}
    # 45 degrees are 0.7854: below an angle of 0.8 they count as parallel: the linear middle (1, 0.5).
    monkeypatch.setattr(merge, "PARALLEL_ANGLE", 0.8)
    np.testing.assert_allclose(merge.slerp(a, b, 0.5)["x"], [1.0, 0.5], rtol=1e-6)
    # Above one of 0.7 they do not: sin 22.5 / sin 45 = 0.5411961 of each: (1.0823922, 0.5411961).
    monkeypatch.setattr(merge, "PARALLEL_ANGLE", 0.7)
    out = merge.slerp(a, b, 0.5)["x"]
    np.testing.assert_allclose(out, [1.0823922, 0.5411961], rtol=1e-6)


def test_opposite_tensors_are_bad_input_by_name():
    a, b = random_tree(7), random_tree(8)
    b["layers"]["mlp"]["kernel"] = -2 * a["layers"]["mlp"]["kernel"]
    with pytest.raises(errors.BadInput) as caught:
        merge.slerp(a, b, 0.5)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("layers", "mlp", "kernel"):
        assert part in message
    assert "embedding" not in message
    merge.slerp(a, b, 0.5, per="whole")  # as a whole the trees are not opposite
    with pytest.raises(errors.BadInput):
        merge.slerp(a, build_opposite(a), 0.5, per="whole")


def build_opposite(tree):
    return {k: build_opposite(v) if isinstance(v, dict) else -v for k, v in tree.items()}


def test_zero_tensor_stays_finite():
    a = {"x": np.zeros(4, np.float32), "y": np.ones(3, np.float32)}
    b = {"x": np.full(4, 2.0, np.float32), "y": np.array([1.0, -1, 0], np.float32)}
    out = merge.slerp(a, b, 0.5)
    np.testing.assert_allclose(out["x"], np.ones(4), rtol=1e-6)  # no angle: linear


def test_half_precision_trees_give_float32():
    generator = np.random.default_rng(9)
    a, b = (jnp.asarray(generator.normal(size=(4, 5)), jnp.bfloat16) for _ in range(2))
    out = np.asarray(merge.slerp({"x": a}, {"x": b}, 0.4)["x"])
    assert out.dtype == np.float32
    exact = reference(np.asarray(a, np.float64), np.asarray(b, np.float64), 0.4, angle_between(
        np.asarray(a, np.float64), np.asarray(b, np.float64)))  # fmt: skip
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)


def test_trees_that_do_not_match_are_bad_input():
    a, b = random_tree(10), random_tree(11)
    del b["embed"]
    with pytest.raises(errors.BadInput, match="embed"):
        merge.slerp(a, b)
    with pytest.raises(errors.BadInput, match="embed"):
        merge.slerp(b, a)
    c = random_tree(12)
    c["layers"]["norm"]["scale"] = np.ones((3, 2), np.float32)
    with pytest.raises(errors.BadInput, match="scale"):
        merge.slerp(a, c)


@pytest.mark.parametrize("per", ["tensor", "whole"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_bad_input_by_name(per, value):
    a, b = random_tree(13), random_tree(14)
    b["layers"]["norm"]["scale"][1, 2] = value
    for weight in (0.0, 0.5):
        with pytest.raises(errors.BadInput, match=r"layers\.norm\.scale holds NaN or infinity"):
            merge.slerp(a, b, weight, per)


@pytest.mark.parametrize("fields", [{"per": "layer"}, {"weight": 5.0}, {"weight": -0.1}, {"weight": float("nan")}])
def test_fields_that_make_no_sense_are_bad_input(fields):
    ((name, value),) = fields.items()
    for made in (merge.Merge, lambda **fields: merge.slerp(random_tree(0), random_tree(1), **fields)):
        with pytest.raises(errors.BadInput, match=f"Merge.{name}={value!r}; set it to"):
            made(**fields)


def test_a_merge_replaces_a_merge_and_nothing_else(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary)
    one, two, output = (tmp_path / name for name in ("contextual", "triplet", "merged"))
    for seed, folder in enumerate((one, two)):
        save_model(folder, config, vocabulary, initial_params(config, seed), stage=folder.name)
    (one / "metrics.jsonl").write_text("{}")
    before = {path: path.read_bytes() for path in one.rglob("*") if path.is_file()}
    with pytest.raises(errors.BadInput, match="contextual is in the way and no merged model"):
        merge_checkpoints(one, two, one)
    assert {path: path.read_bytes() for path in one.rglob("*") if path.is_file()} == before
    with pytest.raises(errors.BadInput, match="is in the way"):  # before anything is read
        merge_checkpoints(tmp_path / "none", two, one / "metrics.jsonl")
    names = {path.name for path in tmp_path.iterdir()}
    for weight in (0.5, 0.0):
        merge_checkpoints(one, two, output, weight)
    assert stage_of(output) == "merged"
    assert {path.name for path in tmp_path.iterdir()} == {*names, "merged"}


def test_models_that_compute_otherwise_are_not_merged(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary)
    other = dataclasses.replace(config, rope_theta=10.0, causal=True, remat=False)
    for seed, (name, its) in enumerate({"one": config, "two": other}.items()):
        save_model(tmp_path / name, its, vocabulary, initial_params(its, seed), stage=name)
    differences = r"one and .*two differ: rope_theta is 1000000\.0 and 10\.0; causal is False and True; merge"
    with pytest.raises(errors.BadInput, match=differences):
        merge_checkpoints(tmp_path / "one", tmp_path / "two", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
