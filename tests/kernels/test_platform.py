"""Which implementation is traced, and which one runs."""

import jax
import pytest

from pplx_jax.kernels import platform
from pplx_jax.kernels.platform import by_platform, device_kind


@pytest.fixture
def traced():
    return []


@pytest.fixture
def multiplied(traced):
    def times(number):
        def run(x):
            traced.append(number)
            return number * x

        return run

    return jax.jit(lambda x: by_platform(x, tpu=times(2), cuda=times(5), default=times(3)))


def test_within_a_mesh_one_is_traced(multiplied, traced):
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert multiplied(1.0) == 3.0 and platform.platform() == "cpu"
    assert traced == [3]


def test_without_one_what_it_is_compiled_for_decides(multiplied, traced):
    assert multiplied(1.0) == 3.0 and device_kind() == ""
    assert sorted(traced) == [2, 3, 5]
    for name, number in (("tpu", 2), ("cuda", 5), ("rocm", 3)):
        module = jax.export.export(multiplied, platforms=[name])(1.0).mlir_module()
        assert [f"{other}.000000e+00" in module for other in (2, 3, 5)] == [number == other for other in (2, 3, 5)]


@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [
        ("TPU v5 lite", "tpu", 2),
        ("NVIDIA H100 80GB HBM3", "cuda", 5),
        ("A100-SXM4-40GB", "cuda", 5),
        ("AMD Instinct MI300X", "cpu", 3),
    ],
)
def test_within_a_mesh_its_kernel_is_traced(multiplied, traced, monkeypatch, kind, name, number):
    monkeypatch.setattr(platform, "_of_mesh", lambda: kind)
    assert multiplied(1.0) == number and platform.platform() == name
    assert traced == [number]
