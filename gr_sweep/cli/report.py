"""The verb `report`: the table, results.csv and the page of a sweep's folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gr_sweep.arguments import Parser


def main(argv: Sequence[str]) -> int:
    """Print the table of a sweep and, as the last line, the path of its page.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    parser = Parser(
        prog="gr-sweep report",
        description="Put the jobs of a sweep side by side: a table here, and DIR/report/index.html "
        "with its plots, beside results.csv.",
        epilog="example:\n  gr-sweep report outputs/my-sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    parser.add_argument("--no-table", action="store_true", help="print the path alone")
    arguments = parser.parse_args(list(argv))

    from gr_sweep.report import print_table, read_sweep, write_report

    sweep = read_sweep(arguments.dir)
    page = write_report(sweep)
    if not arguments.no_table:
        print_table(sweep)
    print(page)
    return 0
