"""From the folders that jobs leave behind to a table, results.csv and a page to look at.

Reads files alone: it never imports torch, and a report of yesterday's sweep needs no model and no
GPU.
"""

from gr_sweep.report.collect import read_sweep
from gr_sweep.report.html import write_report
from gr_sweep.report.terminal import print_table

__all__ = ["print_table", "read_sweep", "write_report"]
