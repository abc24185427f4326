"""The comparison table in the terminal: the rows of the page, and the columns that there is room
for.

Knows nothing of how numbers are read or measured.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gr_sweep.report import figures, measures, rounds
from gr_sweep.report.collect import Sweep
from gr_sweep.report.tables import Column, Row, Table, comparison

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

_UNCUT_COLUMNS = 400
"""Width where the output is no terminal: a file or a pipe has no edge to fold at."""
_WORD = 9
"""A longer heading is broken where it can be."""
_BETWEEN = 3
"""Characters that rich puts between two columns."""
_BY_WEIGHT = (
    measures.COMPUTE_EQUIVALENT, measures.REMOVAL, measures.SELECTIVITY, measures.LOSS,
    measures.TAX, measures.EXPERT_TAX, measures.LEAF_TAX, measures.REMOVED_TAX,
)  # fmt: skip
"""The last is the first to go where there is no room."""


def print_table(sweep: Sweep, console: "Console | None" = None) -> None:
    """Print a row a job, the best value of each column in bold, and what is unfinished below.

    Where they are many or do not fit, columns of single domains are left out, then the lighter
    measures.
    """
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_UNCUT_COLUMNS)
    if sweep.compared:
        content = comparison(sweep)
        every = list(range(len(content.columns)))
        means = [at for at in every if not content.columns[at].is_detail]
        choices = [means] if content.is_folded else [every, means]
        for num_kept in range(len(_BY_WEIGHT), 1, -1):
            names = {measure.name for measure in _BY_WEIGHT[:num_kept]}
            choices.append([at for at in means if _is_kept(content.columns[at], names)])
        widths = _widths(content)
        fitting = [kept for kept in choices if sum(widths[at] for at in kept) <= console.width]
        kept = fitting[0] if fitting else choices[-1]
        table = _table(content, kept)
        table.title = Text(sweep.name)
        console.print(table)
        console.print(
            Text(
                "Held out, nats per token; compute-equivalent, forget compute and removal are "
                f"shares. {_directions([content.columns[at] for at in kept])}"
            )
        )
    of_rounds = rounds.table(rounds.groups(sweep))
    if of_rounds is not None:
        _print_rounds(of_rounds, console)
    shorter = len(sweep.jobs) - len(sweep.compared)
    if shorter:
        console.print(Text(f"{shorter} dense runs of fewer tokens are baselines alone."))
    for job in sweep.unfinished:
        where = "" if job.step is None else f" at step {job.step},"
        console.print(Text(f"{job.name}:{where} {job.why}", style="yellow"))


_ROUND_COLUMNS_BY_WEIGHT = ("stability", "tokens", "assigned", "seeds", "trained")
"""The first is the first to go where there is no room."""


def _print_rounds(content: Table, console: "Console") -> None:
    from rich.text import Text

    kept = list(range(len(content.columns)))
    widths = _widths(content)
    for name in _ROUND_COLUMNS_BY_WEIGHT:
        if sum(widths[at] for at in kept) > console.width:
            kept = [at for at in kept if content.columns[at].name != name]
    table = _table(content, kept)
    table.title = Text("rounds of procedure=alternate")
    console.print(table)


def _directions(columns: Sequence[Column]) -> str:
    """Which of the columns are better low; the others are better high."""
    lower, higher = (
        list(dict.fromkeys(c.group or c.name for c in columns if c.direction == direction))
        for direction in (-1, 1)
    )
    if not lower:
        return "Higher is better." if higher else ""
    return f"Lower is better: {', '.join(lower)}" + ("; all else: higher." if higher else ".")


def _is_kept(column: Column, names: set[str]) -> bool:
    return not column.direction or column.group in names


def _widths(content: Table) -> list[int]:
    """Characters of each column with the space beside it."""
    widths = []
    for at, column in enumerate(content.columns):
        texts = [*_heading(column), *(_texts(row)[at] for row in content.rows)]
        widths.append(max(map(len, texts)) + _BETWEEN)
    return widths


def _texts(row: Row) -> list[str]:
    return [row.jobs[0].edges, *(cell.text for cell in row.cells)]


def _heading(column: Column) -> list[str]:
    name = column.name if column.name != "mean" or not column.group else ""
    return [line for text in (column.group, name) for line in _lines(text)]


def _table(content: Table, kept: list[int]) -> "rich.table.Table":
    import rich.box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title_justify="left", box=rich.box.SIMPLE_HEAD)
    for at in kept:
        column = content.columns[at]
        table.add_column(
            Text("\n".join(_heading(column))),
            justify="right" if column.is_number else "left",
            overflow="fold",
            no_wrap=column.is_number,
        )
    for row in content.rows:
        edges = row.jobs[0].edges
        styles = [figures.colour(edges), *("bold" if cell.best else "" for cell in row.cells)]
        cells = [Text(text, style=style) for text, style in zip(_texts(row), styles, strict=True)]
        table.add_row(*(cells[at] for at in kept))
    return table


def _lines(text: str) -> list[str]:
    if len(text) <= _WORD:
        return [text] if text else []
    return re.sub(r"([-._])", r"\1 ", text).split()
