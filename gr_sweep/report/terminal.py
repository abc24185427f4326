"""The comparison table in the terminal: the rows of the page, and the columns that fit."""

from typing import TYPE_CHECKING

from gr_sweep.report import figures, measures, rounds
from gr_sweep.report.sweep import Sweep
from gr_sweep.report.tables import Column, Row, Table, comparison

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

_ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}
_SPACE = 3
"""Characters that rich puts between columns."""
_BY_IMPORTANCE = (
    measures.COMPUTE_EQUIVALENT, measures.SERVED_REMOVAL, measures.SELECTIVITY,
    measures.SERVED_LOSS, measures.SERVED_TAX, measures.REMOVAL, measures.LOSS, measures.TAX,
    measures.EXPERT_TAX, measures.LEAF_TAX, measures.SERVED_REMOVED_TAX, measures.REMOVED_TAX,
)  # fmt: skip
"""Where not all means fit, the last is left out first."""


def print_table(sweep: Sweep, console: "Console") -> None:
    """Prints a row for each job, with the best value of each column in bold, and what is
    unfinished. Columns that do not fit are left out: single domains first, then the less important
    metrics."""
    from rich.text import Text

    for sentence in sweep.mixed:
        console.print(Text(f"Warning: {sentence}", style="bold yellow"))
    if sweep.compared:
        console.print(_table(comparison(sweep), console.width, sweep.name))
        units = "Held-out losses in nats per token; compute-equivalents and removal are fractions."
        better = f"{_ARROWS[1]} higher is better, {_ARROWS[-1]} lower is better."
        console.print(Text(f"{units} {better}"))
    of_rounds = rounds.table(rounds.groups(sweep))
    if of_rounds is not None:
        console.print(_table(of_rounds, console.width, "rounds of procedure=alternate"))
    if shorter := len(sweep.jobs) - len(sweep.compared):
        console.print(Text(f"{shorter} dense runs on fewer tokens are only baselines."))
    for job in sweep.unfinished:
        where = "" if job.step is None else f" at step {job.step},"
        console.print(Text(f"{job.name}:{where} {job.why}", style="yellow"))


def _fitting(content: Table, width: int) -> list[int]:
    """The columns that fit, by index."""
    columns = content.columns
    widths = [
        max(len(line) for line in [*_heading(column), *(_texts(row)[at] for row in content.rows)])
        for at, column in enumerate(columns)
    ]
    kept = [at for at in range(len(columns)) if not (content.is_folded and columns[at].is_detail)]
    numbers = [at for at in kept if columns[at].direction]
    rank = {measure.metric.title: at for at, measure in enumerate(_BY_IMPORTANCE)}
    while numbers and sum(widths[at] + _SPACE for at in kept) > width:
        last = max(numbers, key=lambda at: rank.get(columns[at].name, len(rank)))
        numbers.remove(last)
        kept.remove(last)
    return kept


def _texts(row: Row) -> list[str]:
    return [row.jobs[0].edges, *(cell.text for cell in row.cells)]


def _heading(column: Column) -> list[str]:
    """A word a line."""
    words = column.name.replace("-", "- ").replace(".", ". ").replace("_", "_ ").split()
    return [*words, *filter(None, [_ARROWS[column.direction]])]


def _table(content: Table, width: int, title: str) -> "rich.table.Table":
    import rich.box
    from rich.table import Table as RichTable
    from rich.text import Text

    kept = _fitting(content, width)
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
