"""Estimates a step's time from its compiled text: cycles of the compiler, schedules of kernels, rates of links."""

import dataclasses
import math
import re
from collections.abc import Sequence

from pplx_jax.plan.chips import Topology
from pplx_jax.plan.hlo import Instruction, Module, parse, runs
from pplx_jax.plan.kernels import VOCABULARY_SLOTS, block_positions, has_schedule, kernel_cycles
from pplx_jax.plan.links import Place, Transfer, buffer_bytes, collectives

_PRODUCTS = ("convolution", "dot")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate of one step on one chip.

    Attributes:
      compiler_seconds: time of fusions, copies and products, by the compiler's cycles.
      kernel_seconds: time of each Pallas kernel, by its schedule.
      transfers: the communication between chips.
      exposed_seconds: time of the transfers that do not overlap with computation.
      product_flops: operations of all executed products, with recomputed ones and without kernels.
      buffer_bytes: memory of collectives' results.
      without_estimate: parts that have no estimate; they count as zero or as their minimum time.
    """

    compiler_seconds: float
    kernel_seconds: dict[str, float]
    transfers: list[Transfer]
    exposed_seconds: float
    product_flops: float
    buffer_bytes: int
    without_estimate: list[str]

    def step_seconds(self, topology: Topology, model_flops_per_chip: float) -> float:
        """Returns the longest of the sum of non-overlapping parts, the busiest link, and the FLOPs at the peak rate."""
        floor = max(model_flops_per_chip, self.product_flops) / topology.chip.peak_flops
        busy = self.compiler_seconds + sum(self.kernel_seconds.values())
        links = {link: sum(each.seconds for each in self.transfers if each.link == link) for link in ("ici", "dcn")}
        return max(busy + self.exposed_seconds, *links.values(), floor)


def estimate(
    text: str,
    places: Sequence[Place],
    topology: Topology,
    *,
    branch_share: float,
    visited_share: float,
    predicted_positions: float = 0.0,
) -> Estimate:
    """Returns the estimate of a compiled program.

    Args:
      text: the text of the program.
      places: the places of the devices, in the order of the mesh.
      topology: where the program runs.
      branch_share: share of executions in which a conditional takes its most expensive branch.
      visited_share: see `kernel_cycles`.
      predicted_positions: number of positions per device that have a loss over the vocabulary; the kernels loop over
        blocks of these only.
    """
    unknown: set[str] = (
        set() if text else {"the program: libtpu gives no text of it, so its times and transfers are unknown"}
    )
    module, entry = parse(text)
    steps = list(runs(module, entry, branch_share, unknown))
    clock = topology.chip.cycles_per_second
    by_name = {name: {each.name: each for each in each_list} for name, each_list in module.items()}
    compiler, kernels = 0.0, dict[str, float]()
    for run in steps:
        each = run.instruction
        if run.within is not None:
            continue
        if each.opcode == "custom-call" and "tpu_custom_call" in each.text:
            operands = [by_name[run.computation][name] for name in each.operands if name in by_name[run.computation]]
            cycles = kernel_cycles(each, operands, topology, visited_share)
            name = re.sub(r"[.\d]+$", "", each.name)
            if cycles is None:
                unknown.add(f"kernel {name}")
            elif not has_schedule(name, topology):
                unknown.add(f"kernel {name}, taken at the peak")
            times = run.times
            if name in VOCABULARY_SLOTS and cycles is not None:
                times *= math.ceil(predicted_positions / block_positions(operands))
            kernels[name] = kernels.get(name, 0.0) + times * (cycles or 0.0) / clock
        elif each.cycles is not None:
            compiler += run.times * each.cycles / clock
        elif each.opcode == "fusion" and any(inner.opcode in _PRODUCTS for inner in _fused(module, each)):
            # The compiler gives no estimate for a product fused with a transfer: count the minimum time.
            fused = _fused(module, each)
            flops = sum(_product_flops(fused, inner) for inner in fused if inner.opcode in _PRODUCTS)
            compiler += run.times * flops / topology.chip.peak_flops
            unknown.add("products fused with asynchronous collectives, taken at the peak")
        elif each.opcode in ("sort", "gather", "scatter", "dynamic-slice", "dynamic-update-slice"):
            unknown.add(each.opcode)
    found = collectives(steps, places, topology)
    flops = sum(
        run.times * _product_flops(module[run.computation], run.instruction)
        for run in steps
        if run.instruction.opcode in _PRODUCTS
    )
    return Estimate(
        compiler_seconds=compiler,
        kernel_seconds=kernels,
        transfers=found,
        exposed_seconds=sum(each.seconds for each in found if not each.overlapped),
        product_flops=flops,
        buffer_bytes=buffer_bytes(module),
        without_estimate=sorted(unknown),
    )


def _fused(module: Module, fusion: Instruction) -> list[Instruction]:
    return module.get(fusion.called("calls") or "", [])


def _product_flops(instructions: Sequence[Instruction], product: Instruction) -> float:
    """Returns 2 x elements of the result x contracted size, from the sizes of the operands, which are instructions of
    the same computation."""
    arrays = {each.name: each.arrays[0][1] for each in instructions if each.arrays}
    sizes = [math.prod(arrays[name]) for name in product.operands[:2] if name in arrays]
    if len(sizes) < 2 or not product.arrays:
        return 0.0
    result = math.prod(product.arrays[0][1])
    # [m, k] x [k, n] -> [m, n]: the product of the three sizes is (m n k) squared, without batch axes.
    return 2.0 * math.sqrt(float(sizes[0]) * sizes[1] * result)
