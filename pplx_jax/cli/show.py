"""How a result is printed for people."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def show(result: Mapping[str, Any]) -> None:
    """Prints aligned lines of name and value, tables of rows, and long texts as they are."""
    from tabulate import tabulate

    lines: list[tuple[str, str]] = []

    def flush() -> None:
        if lines:
            print(tabulate(lines, tablefmt="plain", disable_numparse=True))
            lines.clear()

    for name, value in _entries(result):
        match value:
            case [Mapping(), *_]:
                flush()
                _show_rows(value)
            case str() if "\n" in value:
                flush()
                print(f"\n{value}", end="")
            case list():
                lines += [(name, str(item)) for item in value]
            case _:
                lines.append((name, str(value)))
    flush()


def _entries(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested mappings to dotted names; leaves out rows that contain mappings, which only --json prints."""
    for name, value in result.items():
        match value:
            case Mapping():
                yield from _entries(value, f"{prefix}{name}.")
            case [Mapping() as row, *_] if any(isinstance(cell, Mapping) for cell in row.values()):
                continue
            case _:
                yield f"{prefix}{name}", value


def _show_rows(rows: Rows) -> None:
    """Prints a table with the columns of any row; rows with a text of several lines as numbered blocks."""
    cells = [
        {name: _cell(cell) for name, cell in row.items() if cell is not None and not isinstance(cell, list)}
        for row in rows
    ]
    long = {name for row in cells for name, cell in row.items() if "\n" in cell}
    if long:
        _show_blocks(cells, long)
        return
    from tabulate import tabulate

    columns = list(dict.fromkeys(name for row in cells for name in row))
    numeric = [all(isinstance(row.get(name), int | float) for row in rows) for name in columns]
    print(
        tabulate(
            [[row.get(name, "-") for name in columns] for row in cells],
            headers=columns,
            tablefmt="plain",
            colalign=["right" if each else "left" for each in numeric],
            disable_numparse=True,
        )
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show_blocks(cells: Sequence[Mapping[str, str]], long: set[str]) -> None:
    for number, row in enumerate(cells, 1):
        (_, title), *others = row.items()
        print("  ".join([f"{number}. {title}", *(f"{name} {cell}" for name, cell in others if name not in long)]))
        for name in row:
            if name in long:
                print(textwrap.indent(row[name], "    ") + "\n")
