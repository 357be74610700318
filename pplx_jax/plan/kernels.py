"""How long our Pallas kernels take, by the schedules that the TPU's compilers wrote for them.

Bundles (one a cycle where nothing stalls) for 512 x 512 scores of one head, of a dense row: docs/kernels.md.
"""

from pplx_jax.plan.chips import Topology
from pplx_jax.plan.hlo import Instruction

TILE = 512 * 512
BUNDLES_PER_TILE = {
    "attention_forward": {"v5e": 1010, "v5p": 1020, "v6e": 609},
    "attention_backward": {"v5e": 2280, "v5p": 2240, "v6e": 1190},
}
# Share of the matrix units' slots that the vocabulary loss fills, at widths of 1,024 and 2,560 the lower.
VOCABULARY_SLOTS = {
    "vocab_scores": {"v5e": 0.89, "v5p": 0.87, "v6e": 0.84},
    "vocab_gradients": {"v5e": 0.81, "v5p": 0.77, "v6e": 0.75},
}
# Two cores of a v5p chip take a half of the rows or heads each.
CORES = {"v5e": 1, "v5p": 2, "v6e": 1}
# What a text of a packed row costs: its own pairs in pieces of this many queries and keys.
QUERIES, KEYS = 256, 512


def kernel_cycles(
    kernel: Instruction, operands: list[Instruction], topology: Topology, visited_share: float
) -> float | None:
    """Cycles of one call, None for a kernel that has no schedule here.

    Args:
      kernel: the call.
      operands: what it is given.
      topology: whose chip.
      visited_share: of the pairs of a dense row, those in tiles where texts meet.
    """
    name = next((name for name in (*BUNDLES_PER_TILE, *VOCABULARY_SLOTS) if kernel.name.startswith(name)), None)
    if name is None:
        return _pooling_cycles(kernel, operands, topology)
    if name in VOCABULARY_SLOTS:
        return _vocabulary_cycles(name, operands, topology)
    if topology.version not in BUNDLES_PER_TILE[name]:
        return None
    queries = [dims for each in operands for _, dims in each.arrays if len(dims) == 5]
    keys = [dims for each in operands for _, dims in each.arrays if len(dims) == 4 and dims[-1] == queries[0][-1]]
    if not queries or not keys:
        return None
    batch, kv_heads, group, count, _ = queries[0]
    tiles = batch * kv_heads * group * count * keys[0][2] / TILE
    return tiles * visited_share * BUNDLES_PER_TILE[name][topology.version] / CORES[topology.version]


def block_positions(operands: list[Instruction]) -> int:
    """Positions of a block of the vocabulary loss."""
    return operands[1].arrays[0][1][0]


def _vocabulary_cycles(name: str, operands: list[Instruction], topology: Topology) -> float | None:
    """One product of a block's positions, the width and the classes for the scores, two for the gradients."""
    hidden, table = (next((dims for _, dims in each.arrays if len(dims) == 2), None) for each in operands[1:3])
    if hidden is None or table is None:
        return None
    products = 1 if name == "vocab_scores" else 2
    seconds = 2.0 * products * hidden[0] * hidden[1] * table[0] / topology.chip.peak_flops
    return seconds * topology.chip.cycles_per_second / VOCABULARY_SLOTS[name][topology.version]


def _pooling_cycles(kernel: Instruction, operands: list[Instruction], topology: Topology) -> float | None:
    """The pooling kernel and its gradient read or write the hidden states once, and no more than that."""
    if not kernel.name.startswith("segment_pool"):
        return None
    moved = kernel.bytes + sum(each.bytes for each in operands)
    return moved / topology.chip.hbm_bytes_per_second * topology.chip.cycles_per_second


def visited_share(text_lengths: list[int], rows: int, row_length: int) -> float:
    """Of all pairs of a batch's rows, those in tiles that the kernels visit."""

    def up(length: int, unit: int) -> int:
        return min(-(-length // unit) * unit, row_length)

    pairs = sum(up(length, QUERIES) * up(length, KEYS) for length in text_lengths)
    return min(pairs / (rows * row_length**2), 1.0)
