"""The verb `report`: the table, results.csv and the page of a sweep's folder."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gr_sweep.arguments import Parser


def main(argv: Sequence[str]) -> int:
    """Prints the table of a sweep and, as the last line, the path of its page."""
    parser = Parser(
        prog="gr-sweep report",
        description="Compare the jobs of a sweep: prints a table, and writes DIR/report/index.html "
        "with plots and results.csv.",
        epilog="example:\n  gr-sweep report outputs/my-sweep",
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    arguments = parser.parse_args(list(argv))
    show(arguments.dir)
    return 0


def show(folder: Path, jobs: Collection[Path] | None = None) -> None:
    """Writes the report of a sweep's folder, or of some of its jobs; prints its table and path."""
    from gr_sweep.cli.status import output
    from gr_sweep.report import print_table, read_sweep, write_report

    sweep = read_sweep(folder, jobs)
    page = write_report(sweep)
    print_table(sweep, output())
    print(page)


def main_numbers(summary: Mapping[str, Any]) -> str:
    """A table of a job's losses and of the effect of removing each domain."""
    import pandas as pd

    from gr_sweep.metrics import registry

    metrics, domains = summary["metrics"], summary["domains"]
    rows = {
        "loss, served (nats/token)": [registry.LOSS_SERVED(d) for d in domains],
        "loss, full model": [registry.LOSS_FULL(d) for d in domains],
        "loss, only its own expert": [registry.LOSS_KEPT(d, d) for d in domains],
        "served loss added by removal": [registry.SERVED_MATRIX(d, d) for d in domains],
        "selectivity of its removal": [registry.SELECTIVITY(d) for d in domains],
    }
    numbers = {label: [metrics.get(key) for key in keys] for label, keys in rows.items()}
    table = pd.DataFrame(numbers, index=domains, dtype=float).T.dropna(how="all")
    return table.to_string(float_format="{:.3f}".format, na_rep="-")
