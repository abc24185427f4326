"""The comparison table in the terminal: the same rows and columns as on the page.

Knows nothing of how numbers are read or measured.
"""

from typing import TYPE_CHECKING

from gr_sweep.report.collect import Sweep
from gr_sweep.report.html import comparison

if TYPE_CHECKING:
    from rich.console import Console

_UNCUT_COLUMNS = 400
"""Width where the output is no terminal: a file or a pipe has no edge to fold at."""


def print_table(sweep: Sweep, console: "Console | None" = None) -> None:
    """Print a row a job, the best value of each column in bold, and what is unfinished below."""
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_UNCUT_COLUMNS)
    if sweep.jobs:
        content = comparison(sweep)
        table = Table(title=Text(sweep.name), title_justify="left", box=rich.box.SIMPLE_HEAD)
        for column in content["columns"]:
            group = column["group"].split(" ")[0].rstrip(",")
            table.add_column(
                Text("\n".join(filter(None, (group, column["name"])))),
                justify="right" if column["direction"] else "left",
                overflow="fold",
            )
        for row in content["rows"]:
            cells = [Text(row["edges"], style=row["colour"])]
            cells += [Text(cell["text"]) for cell in row["settings"]]
            cells += [
                Text(cell["text"], style="bold" if cell["best"] else "") for cell in row["cells"]
            ]
            table.add_row(*cells)
        console.print(table)
        console.print(
            Text(
                "Held-out loss of the full model, lower is better; selectivity, higher is better: "
                "nats per token."
            )
        )
    for job in sweep.unfinished:
        where = "" if job.step is None else f" at step {job.step},"
        console.print(Text(f"{job.name}:{where} {job.why}", style="yellow"))
