"""The time of our Pallas kernels, from the schedules that the TPU compilers produced for them.

Bundles (one per cycle without stalls) per 512 x 512 scores of one head, in a dense sequence; see docs/kernels.md. For
other versions of TPUs a kernel takes the time of its products at the peak, the least that it can take.
"""

from pplx_jax.plan.chips import Topology
from pplx_jax.plan.hlo import Instruction

TILE = 512 * 512
BUNDLES_PER_TILE = {
    "attention_forward": {"v5e": 1010, "v5p": 1020, "v6e": 609},
    "attention_backward": {"v5e": 2280, "v5p": 2240, "v6e": 1190},
}
# Products of a tile: scores and output; scores, and the gradients of weights, values, keys and queries.
_PRODUCTS_PER_TILE = {"attention_forward": 2, "attention_backward": 5}
# Share of the matrix units' slots that the vocabulary loss fills: the lower one of widths 1,024 and 2,560.
VOCABULARY_SLOTS = {
    "vocab_scores": {"v5e": 0.89, "v5p": 0.87, "v6e": 0.84},
    "vocab_gradients": {"v5e": 0.81, "v5p": 0.77, "v6e": 0.75},
}
_SCHEDULED = BUNDLES_PER_TILE | VOCABULARY_SLOTS
# A v5p chip has two cores; each takes half of the sequences or heads.
CORES = {"v5e": 1, "v5p": 2, "v6e": 1}
# The cost of a text in a packed sequence is that of its own pairs, in blocks of this many queries and keys.
QUERIES, KEYS = 256, 512


def kernel_cycles(
    kernel: Instruction, operands: list[Instruction], topology: Topology, visited_share: float
) -> float | None:
    """Returns the cycles of one call; None for a kernel that is not ours.

    Args:
      kernel: the call.
      operands: its operands.
      topology: where it runs.
      visited_share: see the function `visited_share`.
    """
    name = next((name for name in (*BUNDLES_PER_TILE, *VOCABULARY_SLOTS) if kernel.name.startswith(name)), None)
    if name is None:
        return _pooling_cycles(kernel, operands, topology)
    if name in VOCABULARY_SLOTS:
        return _vocabulary_cycles(name, operands, topology)
    queries = [dims for each in operands for _, dims in each.arrays if len(dims) == 5]
    keys = [dims for each in operands for _, dims in each.arrays if len(dims) == 4 and dims[-1] == queries[0][-1]]
    if not queries or not keys:
        return None
    batch, kv_heads, group, count, _ = queries[0]
    tiles = batch * kv_heads * group * count * keys[0][2] / TILE
    if not has_schedule(kernel.name, topology):
        flops = 2.0 * _PRODUCTS_PER_TILE[name] * TILE * queries[0][-1]
        return tiles * visited_share * flops / topology.chip.peak_flops * topology.chip.cycles_per_second
    return tiles * visited_share * BUNDLES_PER_TILE[name][topology.version] / CORES[topology.version]


def has_schedule(name: str, topology: Topology) -> bool:
    """Returns whether the time of this kernel is that of a schedule; otherwise it is that of its products at the peak.

    Pooling needs no schedule: it reads or writes the hidden states once.
    """
    known = next((figures for start, figures in _SCHEDULED.items() if name.startswith(start)), None)
    return known is None or topology.version in known


def block_positions(operands: list[Instruction]) -> int:
    """Returns the number of positions in a block of the vocabulary loss."""
    return operands[1].arrays[0][1][0]


def _vocabulary_cycles(name: str, operands: list[Instruction], topology: Topology) -> float | None:
    """Returns the cycles of one product (positions of a block x width x classes) for scores, of two for gradients."""
    hidden, table = (next((dims for _, dims in each.arrays if len(dims) == 2), None) for each in operands[1:3])
    if hidden is None or table is None:
        return None
    products = 1 if name == "vocab_scores" else 2
    seconds = 2.0 * products * hidden[0] * hidden[1] * table[0] / topology.chip.peak_flops
    return seconds * topology.chip.cycles_per_second / VOCABULARY_SLOTS[name].get(topology.version, 1.0)


def _pooling_cycles(kernel: Instruction, operands: list[Instruction], topology: Topology) -> float | None:
    """Returns the cycles of the pooling kernel or its gradient: one read or write of the hidden states."""
    if not kernel.name.startswith("segment_pool"):
        return None
    moved = kernel.bytes + sum(each.bytes for each in operands)
    return moved / topology.chip.hbm_bytes_per_second * topology.chip.cycles_per_second


def visited_share(text_lengths: list[int], rows: int, row_length: int) -> float:
    """Returns the share of all pairs in a batch's sequences that is in tiles that the kernels visit."""

    def up(length: int, unit: int) -> int:
        return min(-(-length // unit) * unit, row_length)

    pairs = sum(up(length, QUERIES) * up(length, KEYS) for length in text_lengths)
    return min(pairs / (rows * row_length**2), 1.0)
