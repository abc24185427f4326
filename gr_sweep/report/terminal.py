"""The answer and the settings in the terminal: the rows of the page, and the columns that fit."""

from typing import TYPE_CHECKING

from gr_sweep.report import answer, figures, rounds, tables
from gr_sweep.report.sweep import Sweep
from gr_sweep.report.tables import Table

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

_ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}
_SPACE = 3
"""Characters that rich puts between columns."""


def print_table(sweep: Sweep, console: "Console") -> None:
    """Prints the answer, a row for each setting with means over seeds and intervals, and what is
    unfinished. The last metrics are left out where they do not fit."""
    from rich.text import Text

    for sentence in sweep.mixed:
        console.print(Text(f"Warning: {sentence}", style="bold yellow"))
    if sweep.compared:
        said = [*answer.sentences(sweep), *answer.notes(sweep), answer.RULE]
        for line in said:
            console.print(Text(line.replace("`", "")))
        console.print(_table(tables.settings(sweep), console.width, sweep.name))
        units = "Held-out losses in nats per token; compute-equivalents and removal are fractions."
        better = f"{_ARROWS[1]} higher is better, {_ARROWS[-1]} lower is better."
        console.print(Text(f"{units} {better}"))
    of_rounds = rounds.table(sweep)
    if of_rounds is not None:
        console.print(_table(of_rounds, console.width, "rounds of procedure=alternate"))
    if shorter := len(sweep.jobs) - len(sweep.compared):
        console.print(Text(f"{shorter} dense runs on fewer tokens are only baselines."))
    for job in sweep.unfinished:
        where = "" if job.step is None else f" at step {job.step},"
        console.print(Text(f"{job.name}:{where} {job.why}", style="yellow"))


def _table(content: Table, width: int, title: str) -> "rich.table.Table":
    import rich.box
    from rich.table import Table as RichTable
    from rich.text import Text

    texts = [[row.name, *(f"{of.text}\n{of.interval}".strip() for of in row.cells)]
             for row in content.rows]  # fmt: skip
    table = RichTable(title=Text(title), title_justify="left", box=rich.box.SIMPLE_HEAD)
    kept, left = [], width
    for at, column in enumerate(content.columns):
        # Settings are in the rows' names, and domains in the means.
        if at > 0 and (column.is_domain or not column.is_number):
            continue
        # A word a line, and an interval below its value.
        words = column.name.replace("-", "- ").replace(".", ". ").replace("_", "_ ").split()
        heading = "\n".join([*words, _ARROWS[column.direction]]).strip()
        lines = [line for text in (heading, *(of[at] for of in texts)) for line in text.split("\n")]
        own = max(map(len, lines))
        left -= _SPACE + (own if at else min(own, width // 3))
        if at > 1 and left < 0:  # The name and the rank, or the number of the round, stay.
            break
        kept.append(at)
        table.add_column(
            Text(heading),
            justify="right" if column.is_number else "left",
            overflow="fold",
            no_wrap=at > 0,
        )
    group = ""
    for row, of in zip(content.rows, texts, strict=True):
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(Text(f"{group}:", style="italic"))
        cells = [Text(row.name, style=figures.colour(row.jobs[0].edges)), *map(Text, of[1:])]
        for cell, text in zip(row.cells, cells[1:], strict=True):
            text.stylize("dim", len(cell.text))
        table.add_row(*(cells[at] for at in kept))
    return table
