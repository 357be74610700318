"""How results are printed for people."""

from pplx_jax.cli.show import show


def test_a_table_has_the_columns_of_every_row(capsys):
    rows = [{"id": "d1", "path": None, "text": "one"}, {"id": "d2", "path": None, "text": "two", "chunk": 0}]
    show({"hits": rows})
    assert capsys.readouterr().out == "id    text    chunk\nd1    one     -\nd2    two     0\n"


def test_rows_with_long_texts_are_shown_as_blocks(capsys):
    show({"hits": [{"id": "d1", "score": 0.123456, "text": "def f():\n    pass", "line": 3}]})
    assert capsys.readouterr().out == "1. d1  score 0.1235  line 3\n    def f():\n        pass\n\n"


def test_names_and_values_are_aligned_around_tables_and_long_texts(capsys):
    show(
        {
            "a": 1,
            "scores": {"ndcg@10": 0.5, "by": [{"k": {"x": 1}}]},
            "rows": [{"n": 5}],
            "b": ["x", "y"],
            "text": "1\n2\n",
        }
    )
    assert capsys.readouterr().out == "a               1\nscores.ndcg@10  0.5\n  n\n  5\nb  x\nb  y\n\n1\n2\n"
