"""Training texts from Python source: exact cuts of definitions, usable summaries."""

import ast
import pathlib
import sysconfig

import pytest

from pplx_jax.recipes.corpora.docstrings import summary
from pplx_jax.recipes.corpora.python_definitions import parse_module, read_module

# Docstrings out of definitions ---------------------------------------------------------------------------------------


def only_text(source: str) -> str:
    (definition,) = parse_module(source).definitions
    return definition.text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        pytest.param(
            'def f(a):\n    """Gives back the argument."""\n    return a\n',
            "def f(a):\n    return a",
            id="plain",
        ),
        pytest.param(
            'def f(a):\n    """Gives back\n    the argument.\n    """\n\n\n    # Why.\n    return a\n\n\nx = 1\n',
            "def f(a):\n    # Why.\n    return a",
            id="several lines, blank lines after it, a comment kept",
        ),
        pytest.param(
            'def f(a): "Gives back the argument."; return a\n',
            "def f(a): return a",
            id="one line",
        ),
        pytest.param(
            'def f(a):\n    "Gives back the argument."; b = a\n    return b\n',
            "def f(a):\n    b = a\n    return b",
            id="statement on the docstring's line",
        ),
        pytest.param(
            'def f(a):\n    ("Gives back "\n     "the argument.")  # noqa\n    return a\n',
            "def f(a):\n    return a",
            id="parentheses, concatenation, trailing comment",
        ),
        pytest.param(
            '@first\n@second(\n    1,\n)\nasync def f(a):\n    r"""Gives back the argument."""\n    return a\n',
            "@first\n@second(\n    1,\n)\nasync def f(a):\n    return a",
            id="decorators, async",
        ),
        pytest.param(
            "def f(a):\n    '''Gives back the argument.'''\n    return a\n",
            "def f(a):\n    return a",
            id="single quotes",
        ),
        pytest.param(
            'größe = "ß"; x = 1\ndef f(ä="ß"):\n    """Gives back the argument."""; return ä\n',
            'def f(ä="ß"):\n    return ä',
            id="positions count bytes",
        ),
        pytest.param(
            'def f():\n\t"""Gives back the number one."""\n\treturn 1\n',
            "def f():\n\treturn 1",
            id="tabs",
        ),
        pytest.param(
            'def f():\n    """Gives back the number one."""\n    return 1',
            "def f():\n    return 1",
            id="no newline at the end",
        ),
        pytest.param(
            'def f():\n    """Makes a function of one."""\n    def g():\n        """Inner words here."""\n'
            '        return 1\n    def h():\n        """Only a docstring."""\n    return g\n',
            "def f():\n    def g():\n        return 1\n    def h():\n        ...\n    return g",
            id="nested functions",
        ),
        pytest.param(
            'def f():\n    """Holds a string with margins."""\n    return """\nleft\n    right\n"""\n',
            'def f():\n    return """\nleft\n    right\n"""',
            id="other strings stay",
        ),
    ],
)
def test_docstring_is_cut_out_exactly(source, text):
    assert only_text(source) == text


def test_method_is_dedented_and_named_by_its_class():
    source = (
        "if True:\n    class A:\n        @property\n        def f(self):\n"
        '            """Gives back the field."""\n            return """\nx"""\n'
    )
    (definition,) = parse_module(source).definitions
    assert definition.name == "A.f"
    assert definition.line == 3
    assert definition.text == '@property\ndef f(self):\n    return """\nx"""'


def test_class_is_an_outline():
    """A documented method has a text of its own; within its class only the signature stands for it."""
    source = '''
@decorated
class A(Base):
    """Holds a number and a name."""

    kind = "a"

    def __init__(self, number):
        self.number = number

    def add(self, other: int,
            more=0) -> int:
        """Adds to the number."""
        return self.number + other

    class Inner:
        """Holds what is inside."""
        field = 1
'''
    outline, method, inner = parse_module(source).definitions
    assert outline.text == (
        '@decorated\nclass A(Base):\n    kind = "a"\n\n'
        "    def __init__(self, number):\n        self.number = number\n\n"
        "    def add(self, other: int,\n            more=0) -> int:\n        ...\n\n"
        "    class Inner:\n        field = 1"
    )
    assert method.name == "A.add" and method.text.endswith("    return self.number + other")
    assert inner.name == "A.Inner"


def test_names_and_docstrings_without_code_are_no_definitions():
    source = 'class E(Exception):\n    """Raised when it fails badly."""\n\n'
    source += 'def f():\n    """To be written by others."""\n    ...\n'
    assert parse_module(source).definitions == ()


def without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Expr(ast.Constant(...))]
    return tree


@pytest.mark.parametrize("name", ["argparse", "dataclasses", "inspect", "tarfile", "typing"])
def test_real_functions_parse_to_the_same_tree_without_docstrings(name):
    path = pathlib.Path(sysconfig.get_path("stdlib"), f"{name}.py")
    module = read_module(path)
    tree = without_docstrings(ast.parse(module.source))
    functions = {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(module.definitions) > 5
    for definition in module.definitions:
        (found,) = ast.parse(definition.text).body
        if definition.line in functions:
            assert ast.dump(found) == ast.dump(functions[definition.line]), definition.name


def test_file_is_read_as_python_reads_it(tmp_path):
    source = '# -*- coding: latin-1 -*-\r\ndef f(a="\xe4"):\r\n    """Gives back the argument."""\r\n    return a\r\n'
    (tmp_path / "latin.py").write_bytes(source.encode("latin-1"))
    (definition,) = read_module(tmp_path / "latin.py").definitions
    assert definition.text == 'def f(a="\xe4"):\n    return a'
    for name, content in (("null.py", b"x = 1\0"), ("bytes.py", b"x = '\xff'"), ("deep.py", b"(" * 5000)):
        (tmp_path / name).write_bytes(content)
        assert read_module(tmp_path / name) is None


# Summaries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Reads the whole file.", "Reads the whole file."),
        ("\n    Reads the\n    whole file.\n\n    More about it.\n    ", "Reads the whole file."),
        ("Reads the whole file.\nArgs:\n  path: of it.", "Reads the whole file."),
        ("Reads the whole file.\n:param path: of it", "Reads the whole file."),
        ("read(path, size=-1)\n\nReads the whole file.", "Reads the whole file."),
        ("====\nReads the whole file.\n====", "Reads the whole file."),
        ("Reads a :class:`~io.TextIO` and ``path`` [1]_ as **one**.", "Reads a io.TextIO and path as one."),
        ("Reads the `format <https://example.org>`_ of files.", "Reads the format of files."),
        ("Computes x**2 and y**2 of values.", "Computes x**2 and y**2 of values."),
        (
            " ".join(["word"] * 20) + ". " + "Then " + " ".join(["more"] * 20) + ".",
            " ".join(["word"] * 20) + ".",
        ),
        ("Uses e.g. Files and so on.", "Uses e.g. Files and so on."),
    ],
)
def test_summary(docstring, expected):
    assert summary(docstring) == expected


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Too short.",
        "See base class.",
        "See the documentation of the parent.",
        "Deprecated since version 2, use other.",
        "Args:\n  path: the path of it.",
        ":param path: the path of the file",
        "path (str, optional): The path of the file.",
        "x : array of many numbers",
        "Liest die größte Datei ein.",
        "a = b + c * d / (e - f) ** 2 == 0 && 1 | 2 | 3",
        "f(x, y, z)",
        ">>> print(one two three)",
        "TODO write this docstring some day",
    ],
)
def test_no_summary(docstring):
    assert summary(docstring) is None
