"""The comparison table in the terminal: the rows of the page, and the columns that fit.

Knows nothing of how numbers are read or measured.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gr_sweep.report import figures, measures, rounds
from gr_sweep.report.sweep import Sweep
from gr_sweep.report.tables import Column, Row, Table, comparison

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

_WIDTH_OF_FILES = 400
"""Where the output is not a terminal, nothing has to be cut."""
_UP, _DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"
_LONG_WORD = 9
"""Longer headings are broken at hyphens."""
_SPACE = 3
"""Characters that rich puts between columns."""
_BY_IMPORTANCE = (
    measures.COMPUTE_EQUIVALENT, measures.REMOVAL, measures.SELECTIVITY, measures.LOSS,
    measures.TAX, measures.EXPERT_TAX, measures.LEAF_TAX, measures.REMOVED_TAX,
)  # fmt: skip
"""The last is left out first."""
_ROUND_COLUMNS = ("stability", "tokens", "assigned", "seeds", "trained")
"""Of the table of rounds; the first is left out first."""


def print_table(sweep: Sweep, console: "Console | None" = None) -> None:
    """Prints a row for each job, with the best value of each column in bold, and what is
    unfinished. Columns that do not fit are left out: single domains first, then the less important
    metrics."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH_OF_FILES)
    for sentence in sweep.mixed:
        console.print(Text(f"Warning: {sentence}", style="bold yellow"))
    if sweep.compared:
        content = comparison(sweep)
        every = list(range(len(content.columns)))
        means = [at for at in every if not content.columns[at].is_detail]
        choices = [means] if content.is_folded else [every, means]
        for num_kept in range(len(_BY_IMPORTANCE), 1, -1):
            names = {"", *(measure.name for measure in _BY_IMPORTANCE[:num_kept])}
            choices.append(
                [
                    at
                    for at in means
                    if not content.columns[at].direction
                    or content.columns[at].group in names - {""}
                ]
            )
        kept = _fitting(content, choices, console.width)
        console.print(_table(content, kept, sweep.name))
        units = "Held-out losses in nats per token; compute-equivalents and removal are fractions."
        console.print(Text(f"{units} {_UP} higher is better, {_DOWN} lower is better."))
    of_rounds = rounds.table(rounds.groups(sweep))
    if of_rounds is not None:
        choices = [
            [
                at
                for at, column in enumerate(of_rounds.columns)
                if column.name not in _ROUND_COLUMNS[:num_left_out]
            ]
            for num_left_out in range(len(_ROUND_COLUMNS) + 1)
        ]
        kept = _fitting(of_rounds, choices, console.width)
        console.print(_table(of_rounds, kept, "rounds of procedure=alternate"))
    if shorter := len(sweep.jobs) - len(sweep.compared):
        console.print(Text(f"{shorter} dense runs on fewer tokens are only baselines."))
    for job in sweep.unfinished:
        where = "" if job.step is None else f" at step {job.step},"
        console.print(Text(f"{job.name}:{where} {job.why}", style="yellow"))


def _fitting(content: Table, choices: Sequence[list[int]], width: int) -> list[int]:
    """The first choice of columns that fits, or the last."""
    widths = [
        max(len(line) for line in [*_heading(column), *(_texts(row)[at] for row in content.rows)])
        + _SPACE
        for at, column in enumerate(content.columns)
    ]
    fitting = (kept for kept in choices if sum(widths[at] for at in kept) <= width)
    return next(fitting, choices[-1])


def _texts(row: Row) -> list[str]:
    return [row.jobs[0].edges, *(cell.text for cell in row.cells)]


def _heading(column: Column) -> list[str]:
    name = column.name if column.name != "mean" or not column.group else ""
    arrow = {1: _UP, -1: _DOWN, 0: ""}[column.direction]
    return [line for text in (column.group, name, arrow) for line in _lines(text)]


def _lines(text: str) -> list[str]:
    if len(text) <= _LONG_WORD:
        return [text] if text else []
    return re.sub(r"([-._])", r"\1 ", text).split()


def _table(content: Table, kept: list[int], title: str) -> "rich.table.Table":
    import rich.box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=Text(title), title_justify="left", box=rich.box.SIMPLE_HEAD)
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
