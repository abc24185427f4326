"""The answer and the settings in the terminal: the rows of the page, and the columns that fit."""

from typing import TYPE_CHECKING

from gr_sweep.report import answer, figures, measures, rounds, tables
from gr_sweep.report.sweep import Sweep
from gr_sweep.report.tables import Column, Table

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
    """Prints the answer, a row for each setting with means over seeds and intervals, and what is
    unfinished. The less important metrics are left out where they do not fit."""
    from rich.text import Text

    for sentence in sweep.mixed:
        console.print(Text(f"Warning: {sentence}", style="bold yellow"))
    if sweep.compared:
        rankings = answer.rankings(sweep)
        for line in [*answer.sentences(rankings), *answer.notes(sweep, rankings)]:
            console.print(Text(line.replace("`", "")))
        console.print(Text(answer.RULE))
        settings = tables.settings(sweep, rankings)
        console.print(_table(settings, console.width, sweep.name))
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
    """The columns that fit, by index: no settings, which the rows' names have, and no domains."""
    columns = content.columns
    texts = [[row.name for row in content.rows], *zip(*_texts(content), strict=True)]
    widths = [
        max(len(line) for text in (*_heading(column), *of) for line in text.split("\n"))
        for column, of in zip(columns, texts, strict=True)
    ]
    widths[0] = min(widths[0], width // 3)
    kept = [at for at, of in enumerate(columns) if at == 0 or (of.is_number and not of.is_domain)]
    numbers = kept[2:]  # The name and the rank, or the number of the round, stay.
    rank = {measure.metric.title: at for at, measure in enumerate(_BY_IMPORTANCE)}
    while numbers and sum(widths[at] + _SPACE for at in kept) > width:
        last = max(numbers, key=lambda at: rank.get(columns[at].name, len(rank)))
        numbers.remove(last)
        kept.remove(last)
    return kept


def _texts(content: Table) -> list[list[str]]:
    """By row, an interval below its value."""
    return [
        [f"{of.text}\n{of.interval}" if of.interval else of.text for of in row.cells]
        for row in content.rows
    ]


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
    group = ""
    for row, texts in zip(content.rows, _texts(content), strict=True):
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(Text(f"{group}:", style="italic"))
        cells = [Text(row.name, style=figures.colour(row.jobs[0].edges)), *map(Text, texts)]
        for cell, text in zip(row.cells, cells[1:], strict=True):
            text.stylize("dim", len(cell.text))
        table.add_row(*(cells[at] for at in kept))
    return table
