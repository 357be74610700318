"""Reads the text of a compiled TPU program: its instructions, how often they run, their cycles and their transfers.

The format of the text is not a public API. Parts that are not recognised are reported as unknown; they raise no error.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"^\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c\d+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = {name: re.compile(rf"\b{name}=%([\w.\-]+)") for name in ("body", "condition", "calls", "to_apply")}
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%([\w.\-]+), false_computation=%([\w.\-]+)")
_BYTES = {"pred": 1, "bf16": 2}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: result arrays as (dtype, dims), names of operands, and the rest as text."""

    name: str
    opcode: str
    arrays: list[tuple[str, tuple[int, ...]]]
    operands: list[str]
    text: str

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest array: for an asynchronous pair, of the result without the input."""
        return max((array_bytes(*array) for array in self.arrays), default=0)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array_bytes(*array) for array in self.arrays)

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None if there is none."""
        found = _CYCLES.search(self.text)
        return int(found.group(1)) if found else None

    def called(self, name: str) -> str | None:
        found = _CALLED[name].search(self.text)
        return found.group(1) if found else None


def array_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    """Returns the bytes of an array without the padding of tiles."""
    bits = re.search(r"\d+", dtype)
    size = _BYTES.get(dtype) or int(bits.group() if bits else 8) / 8
    return int(math.prod(dims) * size)


Module = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Module, str]:
    """Returns the computations by name, and the name of the entry computation."""
    module: Module = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            found = _COMPUTATION.match(line)
            if found:
                current = module.setdefault(found.group(1), [])
                entry = found.group(1) if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(found.group(1), found.group(2)))
    return module, entry


def _instruction(name: str, text: str) -> Instruction:
    shape, rest = _split_shape(text)
    opcode = _OPCODE.match(rest)
    arguments = rest[rest.find("(") : _closing(rest, rest.find("("))]
    arrays = [(dtype, tuple(int(size) for size in dims.split(",") if size)) for dtype, dims in _ARRAY.findall(shape)]
    return Instruction(name, opcode.group(1) if opcode else "", arrays, _OPERAND.findall(arguments), rest)


def _split_shape(text: str) -> tuple[str, str]:
    if text.startswith("("):
        end = _closing(text, 0)
        return text[:end], text[end:]
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(max(start, 0), len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction and how often a step runs it; `within` is the fusion that contains it, if any."""

    instruction: Instruction
    computation: str
    times: float
    within: str | None = None


def runs(module: Module, entry: str, branch_share: float, unknown: set[str]) -> Iterator[Run]:
    """Yields every instruction of a step: loop bodies with their trip counts, fusions and the instructions in them.

    Args:
      module: the computations that `parse` returns.
      entry: the name of the entry computation.
      branch_share: share of executions in which a conditional takes its most expensive branch; the other branches
        share the rest.
      unknown: a set to which parts that are not understood are added.
    """

    def walk(name: str, times: float, within: str | None) -> Iterator[Run]:
        for instruction in module.get(name, []):
            yield Run(instruction, name, times, within)
            match instruction.opcode:
                case "while":
                    trips = trip_count(module, instruction)
                    if trips is None:
                        unknown.add(f"trip count of {instruction.name}, taken as 1")
                    yield from walk(instruction.called("body") or "", times * (trips or 1), within)
                case "conditional":
                    branches = sorted(_branches(instruction), key=lambda branch: _cost(module, branch))
                    shares = [*[(1 - branch_share) / max(len(branches) - 1, 1)] * (len(branches) - 1), branch_share]
                    for branch, share in zip(branches, shares, strict=False):
                        yield from walk(branch, times * share, within)
                case "fusion" | "call" | "async-start":
                    inner = instruction.called("calls") or instruction.called("to_apply") or ""
                    yield from walk(inner, times, instruction.name if instruction.opcode == "fusion" else within)

    yield from walk(entry, 1.0, None)


def _branches(instruction: Instruction) -> list[str]:
    found = _BRANCHES.search(instruction.text)
    if not found:
        return []
    return _OPERAND.findall(found.group(1)) if found.group(1) else [found.group(2), found.group(3)]


def _cost(module: Module, name: str) -> int:
    return sum(instruction.cycles or 0 for instruction in module.get(name, []))


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Returns the number of iterations of a loop: the constant that its condition compares with its counter."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.text)
    if known:
        return int(known.group(1))
    found: list[int] = []
    pending = [loop.called("condition") or ""]
    while pending:
        for instruction in module.get(pending.pop(), []):
            if instruction.opcode == "constant" and instruction.arrays[:1] in ([("s32", ())], [("u32", ())]):
                value = re.match(r"\s*constant\((\d+)\)", instruction.text)
                found += [int(value.group(1))] if value else []
            pending += [inner] if (inner := instruction.called("calls")) else []
    return max(found, default=None) or None
