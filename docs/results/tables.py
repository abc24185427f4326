"""The tables of docs/results.md, made again from the folders beside this file:

    python docs/results/tables.py FOLDER MEASURE ... [--where NAME=VALUE]

prints a Markdown table, a row a setting: means and 95 % t-intervals over seeds; of a single seed
the value and its bootstrap interval over documents, in brackets.
"""

import argparse
from pathlib import Path

from gr_sweep.report.collect import Estimate, Job, Sweep, read_sweep


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="A table of docs/results.md as Markdown.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("measures", nargs="+", help="metrics, or means such as mean_removal")
    parser.add_argument("--where", nargs="*", default=[], help="NAME=VALUE that jobs must have")
    options = parser.parse_args()
    sweep = read_sweep(options.folder)
    print("| " + " | ".join(["setting", "seeds", *options.measures]) + " |")
    print("|---" * (len(options.measures) + 2) + "|")
    groups = [group for group in sweep.replicates if matches(group[0], options.where)]
    labels = [sweep.label(group[0], seed=False) for group in groups]
    for label, group in sorted(zip(labels, groups, strict=True), key=lambda pair: pair[0]):
        cells = [cell(sweep, group, measure) for measure in options.measures]
        if any(text != "-" for text in cells):
            print("| " + " | ".join([f"`{label}`", str(len(group)), *cells]) + " |")


def matches(job: Job, conditions: list[str]) -> bool:
    """Whether the job has the settings."""
    pairs = [condition.split("=", 1) for condition in conditions]
    return all(str(job.settings.get(name)) == value for name, value in pairs)


def cell(sweep: Sweep, group: list[Job], measure: str) -> str:
    """Mean over seeds and its interval as text."""
    if len(group) == 1:
        return text(group[0].estimate(measure), "[]")
    return text(sweep.over_seeds(group, measure), "()")


def text(estimate: Estimate | None, brackets: str) -> str:
    """`0.53 (0.48 to 0.58)`."""
    if estimate is None:
        return "-"
    value = f"{estimate.value:.2f}"
    if estimate.interval is None:
        return value
    low, high = estimate.interval
    return f"{value} {brackets[0]}{low:.2f} to {high:.2f}{brackets[1]}"


if __name__ == "__main__":
    main()
