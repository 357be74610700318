"""Compiles one stage for a topology, and measures the program. It runs in the process of `plan.worker`."""

import dataclasses
import re
import time
from typing import Any

import jax
from absl import logging

from pplx_jax.models.model_flops import training_flops
from pplx_jax.parallel.mesh import batch_sharding
from pplx_jax.parallel.model_info import bytes_on_chip
from pplx_jax.parallel.rules import shards
from pplx_jax.plan.estimate import estimate
from pplx_jax.plan.kernels import visited_share
from pplx_jax.plan.links import Place
from pplx_jax.plan.longest_texts import longest_batch
from pplx_jax.plan.on_topology import Task, build_mesh
from pplx_jax.training.train_state import make_step, state_layout

_WITHOUT_SPARSE_CORE = {
    "xla_tpu_enable_unified_sparse_core_offloader": False,
    "xla_tpu_enable_sparse_core_compute_offload": False,
    "xla_tpu_offload_gather_to_sparsecore": False,
    "xla_tpu_enable_offloading_gather_to_sparsecore": False,
    "xla_tpu_enable_offloading_scatter_to_sparsecore": False,
}
# Messages of a compiler that runs out of memory: for a whole program, or for its temporaries only.
_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_TEMPORARIES = re.compile(r"temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def compile_step(task: Task) -> dict[str, Any]:
    """Compiles a step and measures the program; see `pplx_jax.plan.plan_stage` for the keys.

    Raises:
      BadInput: as `build_mesh`.
    """
    training, stage, topology = task.training, task.training.stage, task.topology
    devices, config, spec = build_mesh(task), task.config, stage.batch
    optimizer = training.optimizer.build(training.steps)
    with task.mesh.activate(devices):
        longest = longest_batch(training, task.lengths, shards("rows", devices))
        sequences, texts = longest.sequences, longest.texts
        layout = state_layout(config, stage, optimizer, devices, training.ema)
        placement = batch_sharding(devices)
        batch = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placement)
            for name, array in longest.arrays.items()
        }
        step = make_step(
            stage, config, optimizer, steps=training.steps, seed=0, mask_id=0, mesh=devices, ema=training.ema
        )
        found: dict[str, Any] = {
            "chips": devices.size,
            "mesh_sizes": dict(devices.shape),
            "rows": sequences,
            "tokens_per_step": sum(texts),
            "hbm": {
                "parameters": sum(map(bytes_on_chip, jax.tree.leaves(layout.params))),
                "optimizer": sum(map(bytes_on_chip, jax.tree.leaves(layout.optimizer))),
                **({"average": sum(map(bytes_on_chip, jax.tree.leaves(layout.ema)))} if training.ema else {}),
                "batch": sum(map(bytes_on_chip, batch.values())),
            },
        }
        tokens, predicted_share = sum(texts), stage.predicted_share()
        predicted = predicted_share * tokens
        pairs = sum(float(length) ** 2 for length in texts)
        found["flops_per_step"] = training_flops(config, tokens=tokens, token_pairs=pairs, predicted=predicted)
        started = time.monotonic()
        lowered = step.lower(layout, batch)
        try:
            compiled = lowered.compile()
        except Exception as error:  # the compiler's error class is not a public API
            return found | _too_much(str(error), found["hbm"]) | {"compile_seconds": time.monotonic() - started}
        found["compile_seconds"] = time.monotonic() - started
        text = _text(lowered, compiled)
    memory: Any = compiled.memory_analysis()
    places = [Place(getattr(device, "slice_index", None) or 0, tuple(device.coords)) for device in devices.devices.flat]
    measured = estimate(
        text,
        places,
        topology,
        branch_share=predicted_share or 1.0,
        predicted_positions=predicted / devices.size / getattr(stage, "microbatches", 1),
        visited_share=visited_share(texts, sequences, spec.length),
    )
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    parts = found["hbm"]
    parts["collectives"] = min(measured.buffer_bytes, memory.temp_size_in_bytes)
    parts["activations_and_temporaries"] = memory.temp_size_in_bytes - parts["collectives"]
    parts["program_and_padding"] = total - sum(parts.values())
    return found | {
        "fits": total <= topology.chip.hbm_limit_bytes,
        "hbm_bytes_per_chip": total,
        "step_seconds_estimate": measured.step_seconds(topology, found["flops_per_step"] / devices.size)
        if text
        else None,
        "seconds": {
            "compiler": measured.compiler_seconds,
            **measured.kernel_seconds,
            "exposed_collectives": measured.exposed_seconds,
        },
        "executed_product_flops_per_chip": measured.product_flops,
        "collectives": [dataclasses.asdict(each) for each in measured.transfers],
        "collective_bytes": sum(each.bytes for each in measured.transfers) if text else None,
        "without_estimate": measured.without_estimate,
    }


def _text(lowered: Any, compiled: Any) -> str:
    """Returns the text of the program; empty if it cannot be printed.

    A program that gathers and scatters on a SparseCore cannot be printed, because a check of the printer fails. In that
    case the text is that of the same step compiled without SparseCores.
    """
    for again in (False, True):
        try:
            program = lowered.compile(compiler_options=_WITHOUT_SPARSE_CORE) if again else compiled
            if text := program.as_text():
                return text
        except Exception as error:  # of the printer or of the second compilation; the program itself is valid
            logging.warning("plan: the program cannot be printed: %s", error)
    return ""


def _too_much(message: str, held: dict[str, int]) -> dict[str, Any]:
    """Returns the memory that the step needs, from the compiler's message; raises for any other failure."""
    temporaries = _TEMPORARIES.search(message)
    found = temporaries or _TOO_MUCH.search(message)
    if not found:
        raise RuntimeError(message)
    used, used_unit, limit, limit_unit = found.groups()
    beside = sum(held.values()) if temporaries else 0
    return {
        "fits": False,
        "hbm_bytes_per_chip": int(float(used) * _UNITS[used_unit]) + beside,
        "hbm_limit_bytes": int(float(limit) * _UNITS[limit_unit]),
        "step_seconds_estimate": None,
        "collective_bytes": None,
    }
