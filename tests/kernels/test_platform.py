"""Which of two implementations is traced, and which one runs."""

import jax
import pytest

from pplx_jax.kernels import platform
from pplx_jax.kernels.platform import device_kind, is_tpu, on_tpu


@pytest.fixture
def traced():
    return []


@pytest.fixture
def twice_or_thrice(traced):
    def kernel(x):
        traced.append("kernel")
        return 2 * x

    def otherwise(x):
        traced.append("otherwise")
        return 3 * x

    return jax.jit(lambda x: on_tpu(kernel, x, otherwise=otherwise))


def test_within_a_mesh_one_is_traced(twice_or_thrice, traced):
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert twice_or_thrice(1.0) == 3.0 and not is_tpu(device_kind())
    assert traced == ["otherwise"]


def test_without_one_what_it_is_compiled_for_decides(twice_or_thrice, traced):
    assert twice_or_thrice(1.0) == 3.0 and device_kind() == ""
    assert sorted(traced) == ["kernel", "otherwise"]
    for_tpu = jax.export.export(twice_or_thrice, platforms=["tpu"])(1.0).mlir_module()
    assert "2.000000e+00" in for_tpu and "3.000000e+00" not in for_tpu


def test_within_a_mesh_of_tpus_the_kernel_is_traced(twice_or_thrice, traced, monkeypatch):
    monkeypatch.setattr(platform, "_of_mesh", lambda: "TPU v5 lite")
    assert twice_or_thrice(1.0) == 2.0 and is_tpu(device_kind())
    assert traced == ["kernel"]
