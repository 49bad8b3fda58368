"""A table as plain text, for terminals, logs and comments alike."""

from io import StringIO

from rich.console import Console
from rich.table import Table

WIDTH = 100


def plain_table() -> Table:
    """An empty table without lines."""
    return Table(box=None, pad_edge=False, show_edge=False)


def as_text(table: Table, width: int = WIDTH) -> str:
    """Its lines, without color and without spaces at their ends."""
    out = StringIO()
    Console(file=out, width=width, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
