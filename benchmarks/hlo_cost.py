"""Cost of a compiled program, from its HLO text: matrix FLOPs, HBM bytes and the cycles that the compiler estimates.

XLA's own cost analysis counts the body of a loop once; here each trip counts.
"""

import dataclasses
import math
import re

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional"}
_LATER = ("copy-done", "async-done", "slice-done", "all-gather-done", "all-reduce-done")  # counted at their start


@dataclasses.dataclass
class Cost:
    """Cost of all operations that run, each trip of a loop included.

    Attributes:
      matrix_flops: FLOPs of XLA's products, times the passes that float32 needs; kernels are not included.
      hbm_bytes: bytes that XLA's operations read and write, without the kernels.
      cycles: the compiler's estimate for XLA's operations.
      floor_seconds: time of XLA's operations one after another, each at the peak of the matrix units or of HBM.
      kernels: number of runs of each kernel.
      collectives: bytes of the results of each kind of collective.
    """

    matrix_flops: float = 0.0
    hbm_bytes: float = 0.0
    cycles: float = 0.0
    floor_seconds: float = 0.0
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, other: "Cost", times: float) -> None:
        """Adds `times` x the other cost."""
        for name in ("matrix_flops", "hbm_bytes", "cycles", "floor_seconds"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("kernels", "collectives"):
            mine = getattr(self, name)
            for key, value in getattr(other, name).items():
                mine[key] = mine.get(key, 0.0) + times * value


def _closing(text: str, start: int) -> int:
    """Returns the index of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError("no closing bracket")


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str
    result: str
    kind: str
    operands: list[str]
    rest: str


def _parse(text: str) -> tuple[dict[str, list[_Operation]], str]:
    computations: dict[str, list[_Operation]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (found := _OPERATION.match(line)):
            name, body = found.groups()
            end = _closing(body, 0) + 1 if body.startswith("(") else body.index(" ")
            result, body = body[:end], body[end:].strip()
            opening = body.index("(")
            closing = _closing(body, opening)
            operands = re.findall(r"%([\w.\-]+)", body[opening:closing])
            current.append(_Operation(name, result, body[:opening], operands, body[closing:]))
    return computations, entry


def _size(shape: str, *, hbm_only: bool) -> int:
    total = 0
    for dtype, dims, layout in _SHAPE.findall(shape):
        if not (hbm_only and "S(1)" in layout):
            total += _WIDTH.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
    return total


def _bare(shape: str) -> str:
    return re.sub(r"\{[^}]*\}", "", shape)


def _elements(shape: str) -> int:
    return math.prod(int(n) for n in _SHAPE.search(shape).group(2).split(",") if n)


def cost_of(text: str, *, peak_flops: float, hbm_bytes_per_second: float, trips: int) -> Cost:
    """The cost of a compiled program.

    Args:
      text: `compiled.as_text()`.
      peak_flops: FLOP/s of the matrix units.
      hbm_bytes_per_second: bandwidth.
      trips: trips of each loop whose number of trips the compiler does not know.
    """
    computations, entry = _parse(text)
    known: dict[str, Cost] = {}

    def flops_within(name: str) -> float:
        shapes = {operation.name: operation.result for operation in computations[name]}
        total = 0.0
        for operation in computations[name]:
            if operation.kind in ("convolution", "dot"):
                sizes = [_elements(shapes[operand]) for operand in operation.operands[:2]]
                # [m, k] x [k, n] -> [m, n]: the product of the three sizes is (m n k)^2.
                passes = 6 if "highest" in operation.rest else 1  # a float32 product is six products of bfloat16 parts
                total += passes * 2.0 * math.sqrt(math.prod([*sizes, _elements(operation.result)]))
            elif called := re.search(r"calls=%([\w.\-]+)", operation.rest):
                total += flops_within(called.group(1))
        return total

    def kinds_within(operation: _Operation) -> set[str]:
        called = re.search(r"calls=%([\w.\-]+)", operation.rest)
        return {inner.kind for inner in computations[called.group(1)]} if called else {operation.kind}

    def traffic(operation: _Operation, shapes: dict[str, str]) -> float:
        """HBM bytes; of an array that is read or written in part, only that part."""
        result = _size(operation.result, hbm_only=True)
        operands = [shapes[operand] for operand in operation.operands if operand in shapes]
        read = [_size(operand, hbm_only=True) for operand in operands]
        kinds = kinds_within(operation)
        if kinds & {"dynamic-update-slice", "scatter"}:
            others = [_size(x, hbm_only=False) for x in operands if _bare(x) != _bare(operation.result)]
            part = max(others, default=result)
            read = [
                min(size, part) if _bare(x) == _bare(operation.result) else size
                for size, x in zip(read, operands, strict=True)
            ]
            return min(result, part) + sum(read)
        if kinds & {"dynamic-slice", "gather"} and not kinds & {"convolution", "dot"}:
            part = _size(operation.result, hbm_only=False)
            read = [min(size, part) for size in read]
        return result + sum(read)

    def cost(name: str) -> Cost:
        if name in known:
            return known[name]
        total = Cost()
        shapes = {operation.name: operation.result for operation in computations[name]}
        for operation in computations[name]:
            if operation.kind == "while":
                found = re.search(r'known_trip_count":\{"n":"(\d+)"', operation.rest)
                body = re.search(r"body=%([\w.\-]+)", operation.rest).group(1)
                total.add(cost(body), int(found.group(1)) if found else trips)
            elif operation.kind == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", operation.rest)
                names = (
                    re.findall(r"%([\w.\-]+)", branches.group(1))
                    if branches
                    else re.findall(r"(?:true|false)_computation=%([\w.\-]+)", operation.rest)
                )
                total.add(max(map(cost, names), key=lambda one: (one.matrix_flops, one.hbm_bytes)), 1)
            if operation.kind in _FREE or operation.kind in _LATER:
                continue
            own = Cost()
            if "tpu_custom_call" in operation.rest:
                kernel = operation.name.rsplit(".", 1)[0]
                own.kernels[kernel] = 1.0
            else:
                own.hbm_bytes = traffic(operation, shapes)
                called = re.search(r"calls=%([\w.\-]+)", operation.rest)
                own.matrix_flops = flops_within(called.group(1)) if called else 0.0
                estimate = re.search(r'estimated_cycles":"(\d+)"', operation.rest)
                own.cycles = float(estimate.group(1)) if estimate else 0.0
                own.floor_seconds = max(own.matrix_flops / peak_flops, own.hbm_bytes / hbm_bytes_per_second)
            if re.match(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)", operation.kind):
                kind = operation.kind.removesuffix("-start")
                own.collectives[kind] = _size(operation.result, hbm_only=False)
            total.add(own, 1)
        known[name] = total
        return total

    return cost(entry)
