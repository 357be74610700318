"""What the benchmark of compiled GPU programs says without CUDA's wheels, and what it reads of an assembler."""

import importlib.util
import pathlib
import subprocess
import sys
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu_compiled(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("gpu_compiled", FOLDER / "gpu_compiled.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is not None, reason="CUDA's wheels are here")
def test_without_a_cuda_compiler_it_says_so_and_ends():
    done = subprocess.run([sys.executable, FOLDER / "gpu_compiled.py", "--json"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "gpu_compiled: no CUDA compiler here; pip install 'pplx-jax[cuda]'\n"


PTX = ".target sm_90a\n.visible .entry {name}(\nwgmma.mma_async.sync;\nwgmma.mma_async.sync;\nmma.sync.aligned;\n"
PTXAS = """#!/bin/sh
[ "$2" = -arch=sm_90a ] || exit 1
echo "0 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads" >&2
echo "ptxas info    : Used 167 registers, used 1 barriers" >&2
"""


def test_it_reads_registers_spills_and_tensor_core_instructions_of_each_kernel(gpu_compiled, tmp_path, monkeypatch):
    ptxas = tmp_path / "toolkit" / "bin" / "ptxas"
    ptxas.parent.mkdir(parents=True)
    ptxas.write_text(PTXAS)
    ptxas.chmod(0o755)
    toolkit = types.ModuleType("nvidia.cuda_nvcc")
    toolkit.__path__ = [str(tmp_path / "toolkit")]
    parent = types.ModuleType("nvidia")
    parent.cuda_nvcc = toolkit
    monkeypatch.setitem(sys.modules, "nvidia", parent)
    monkeypatch.setitem(sys.modules, "nvidia.cuda_nvcc", toolkit)
    (tmp_path / "module.1.ptx").write_text(PTX.format(name="attention_forward"))
    (tmp_path / "module.2.ptx").write_text(".visible .entry loop_add_fusion(\nadd.f32;\n")
    assert gpu_compiled.kernels_in(tmp_path, "sm_90a") == {
        "attention_forward": {"registers": 167, "spill_bytes": 24, "tensor_core_instructions": 3}
    }


def test_each_device_is_described_to_the_compiler(gpu_compiled):
    assert set(gpu_compiled.DEVICES) == {"h100", "a100", "rtx4090"}
    config = gpu_compiled.DEVICES["h100"].config()
    assert (
        'device_description_str: "NVIDIA H100 80GB HBM3"' in config
        and "shared_memory_per_block_optin: 232448" in config
    )
    assert config.count("{") == config.count("}")
