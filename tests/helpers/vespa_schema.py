"""A reader of Vespa schemas for tests: refuses what the part of the grammar used here does not allow, and evaluates
rank profiles on documents in numpy.

Written from SchemaParser.jj and the references of schemas and ranking expressions of vespa-engine, and sharing nothing
with what writes the schemas.
"""

import ast
import dataclasses
import operator
import re

import numpy as np

TENSOR = re.compile(r"tensor<(int8|bfloat16|float|double)>\(([^()]*)\)")
DIMENSION = re.compile(r"([a-z_]\w*)(?:(\{\})|\[([1-9]\d*)\])")
BLOCKS = {
    "schema": {"document", "rank-profile"},
    "document": {"field"},
    "field": {"attribute", "index"},
    "attribute": set(),
    "index": {"hnsw"},
    "hnsw": set(),
    "rank-profile": {"inputs", "function", "first-phase", "second-phase"},
    "inputs": set(),
    "function": set(),
    "first-phase": set(),
    "second-phase": set(),
}
PROPERTIES = {
    "field": {"indexing": r"(summary|attribute|index)( \| (summary|attribute|index))*", "attribute": "paged|fast-rank"},
    "attribute": {"distance-metric": "euclidean|angular|dotproduct|prenormalized-angular|hamming|geodegrees"},
    "hnsw": {"max-links-per-node": r"\d+", "neighbors-to-explore-at-insert": r"\d+"},
    "rank-profile": {"match-features": r"\w+( \w+)*"},
    "function": {"expression": ".+"},
    "first-phase": {"expression": ".+"},
    "second-phase": {"expression": ".+", "rerank-count": r"\d+"},
}


class SchemaError(Exception):
    """The error that a configuration server would answer."""


@dataclasses.dataclass
class Block:
    kind: str
    name: str
    properties: dict[str, str] = dataclasses.field(default_factory=dict)
    children: list["Block"] = dataclasses.field(default_factory=list)
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)

    def of(self, kind):
        return [child for child in self.children if child.kind == kind]


def parse(text):
    stack = [Block("file", "")]
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        here = stack[-1]
        if line == "}":
            if len(stack) == 1:
                raise SchemaError("one } too many")
            stack.pop()
        elif line.endswith("{"):
            kind, _, name = line[:-1].strip().partition(" ")
            if kind not in ({"schema"} if here.kind == "file" else BLOCKS[here.kind]):
                raise SchemaError(f"{kind!r} in {here.kind!r}")
            block = Block(kind, name.strip())
            here.children.append(block)
            stack.append(block)
        elif here.kind == "inputs":
            match = re.fullmatch(r"query\((\w+)\) (tensor.*)", line)
            if not match:
                raise SchemaError(f"input {line!r}")
            here.inputs[match[1]] = match[2]
        else:
            key, colon, value = line.partition(":")
            pattern = PROPERTIES.get(here.kind, {}).get(key)
            if not colon or pattern is None or not re.fullmatch(pattern, value.strip()):
                raise SchemaError(f"{line!r} in {here.kind!r}")
            if key in here.properties:
                raise SchemaError(f"{key!r} twice")
            here.properties[key] = value.strip()
    if len(stack) != 1 or len(stack[0].children) != 1:
        raise SchemaError("unbalanced braces")
    return stack[0].children[0]


def tensor_type(text):
    """Returns (cell type, [(dimension, size; None if mapped)])."""
    match = TENSOR.fullmatch(text)
    dimensions = [DIMENSION.fullmatch(part.strip()) for part in match[2].split(",")] if match else [None]
    if None in dimensions:
        raise SchemaError(f"type {text!r}")
    return match[1], [(found[1], None if found[2] else int(found[3])) for found in dimensions]


class Schema:
    """A checked schema.

    Attributes:
        name: of schema and document.
        fields: name -> type.
        profiles: name -> rank-profile Block.
    """

    def __init__(self, text):
        root = parse(text)
        self.name = root.name
        (document,) = root.of("document")
        if document.name != self.name:
            raise SchemaError("document and schema differ in name")
        self.fields, self.metric = {}, {}
        for field in document.of("field"):
            match = re.fullmatch(r"(\w+) type (.+)", field.name)
            if not match:
                raise SchemaError(f"field {field.name!r}")
            self._field(match[1], match[2], field)
        self.profiles = {block.name: block for block in root.of("rank-profile")}
        for block in self.profiles.values():
            self._try(block)

    def _field(self, name, kind, block):
        self.fields[name] = kind
        indexing = block.properties["indexing"].split(" | ")
        if not kind.startswith("tensor"):
            if kind not in ("string", "int", "array<string>"):
                raise SchemaError(f"type {kind!r}")
            return
        cell, dimensions = tensor_type(kind)
        for attribute in block.of("attribute"):
            self.metric[name] = attribute.properties["distance-metric"]
            if self.metric[name] == "hamming" and cell != "int8":
                raise SchemaError("hamming needs int8")
        hnsw = [graph for index in block.of("index") for graph in index.of("hnsw")]
        if bool(hnsw) != ("index" in indexing) or "attribute" not in indexing:
            raise SchemaError(f"{name}: a graph needs `attribute | index`")
        if hnsw and [size is None for _, size in dimensions].count(False) != 1:
            raise SchemaError(f"{name}: a graph needs one indexed dimension")

    def _try(self, block):
        """Evaluates a profile once, on ones, to find unknown names, wrong dimensions and NaN."""
        queries = {name: np.ones(tensor_type(kind)[1][0][1]) for name, kind in self.inputs(block).items()}
        attributes = {
            name: {"0": np.ones(tensor_type(kind)[1][-1][1], np.int8)}
            for name, kind in self.fields.items()
            if kind.startswith("tensor")
        }
        context = Context(self, block, queries, attributes, {name: 0.0 for name in self.metric})
        for phase in block.of("first-phase") + block.of("second-phase"):
            if not isinstance(context.evaluate(phase.properties["expression"]), float):
                raise SchemaError(f"{block.name}: {phase.kind} is no number")
        context.features()

    def inputs(self, block):
        return {name: kind for inputs in block.of("inputs") for name, kind in inputs.inputs.items()}


BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def each(function, *values):
    """Maps over the labels of a mapped dimension, as a join does."""
    labels = next((value.keys() for value in values if isinstance(value, dict)), None)
    if labels is None:
        return function(*values)
    return {label: function(*(v[label] if isinstance(v, dict) else v for v in values)) for label in labels}


def hamming(a, b):
    return np.array([bin((int(x) ^ int(y)) & 0xFF).count("1") for x, y in zip(a, b, strict=True)], float)


def unpack_bits(cells):
    """Eight floats a cell, the most significant bit first."""
    return np.array([float((int(cell) & 0xFF) >> place & 1) for cell in cells for place in range(7, -1, -1)])


def cosine(a, b):
    if len(a) != len(b):
        raise SchemaError(f"x[{len(a)}] with x[{len(b)}]")
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


class Context:
    """One document, one query and one rank profile."""

    def __init__(self, schema, block, queries, attributes, distances):
        self.block, self.queries, self.attributes, self.distances = block, queries, attributes, distances
        self.functions = {f.name.removesuffix("()"): f.properties["expression"] for f in block.of("function")}

    def features(self):
        return {name: self.evaluate(f"{name}()") for name in self.block.properties["match-features"].split()}

    def evaluate(self, expression):
        try:
            return self._value(ast.parse(expression, mode="eval").body)
        except (KeyError, SyntaxError, ValueError) as error:
            raise SchemaError(f"{expression!r}: {error}") from None

    def _value(self, node):
        if isinstance(node, ast.Constant):
            return float(node.value)
        if isinstance(node, ast.BinOp):
            return each(BINARY[type(node.op)], self._value(node.left), self._value(node.right))
        if not isinstance(node, ast.Call):
            raise SchemaError(f"cannot read {ast.dump(node)}")
        name, arguments = node.func.id, node.args
        words = [argument.id if isinstance(argument, ast.Name) else None for argument in arguments]
        match name:
            case "query":
                return self.queries[words[0]]
            case "attribute":
                return self.attributes[words[0]]
            case "distance" if words[0] == "field":
                return self.distances[words[1]]
            case "sum" if words[1] == "x":
                return each(lambda cells: float(np.sum(cells)), self._value(arguments[0]))
            case "reduce" if words[1:] == ["max", "chunk"]:
                return max(self._value(arguments[0]).values())
            case "hamming":
                return each(hamming, *map(self._value, arguments))
            case "unpack_bits":
                return each(unpack_bits, self._value(arguments[0]))
            case "cosine_similarity" if words[2] == "x":
                return each(cosine, *map(self._value, arguments[:2]))
            case _ if name in self.functions and not arguments:
                return self.evaluate(self.functions[name])
        raise SchemaError(f"cannot evaluate {ast.unparse(node)}")
