"""Prints a table of docs/results.md from studies' CSV files, one row for each setting.

    python docs/results/tables.py edges_vs_baselines mean_tax mean_removal
    python docs/results/tables.py edges_vs_baselines,peers_seeds mean_served_tax

The files are what `gr_sweep.results` returns. With several seeds a cell has the mean and Student's
95 % interval over seeds, with one seed the value and its bootstrap interval over documents.
"""

import sys
from pathlib import Path

import pandas as pd
from scipy import stats


def over_seeds(studies: list[str], metrics: list[str]) -> pd.DataFrame:
    """Mean, low and high of each metric by setting; columns (metric, mean|low|high)."""
    folder = Path(__file__).parent
    jobs = pd.concat([pd.read_csv(folder / f"{study}.csv") for study in studies])
    settings = jobs["label"].str.replace(r"(^| )seed=\d+", "", regex=True)
    table = {}
    for metric in metrics:
        groups = jobs[metric].groupby(settings)
        mean, count = groups.mean(), groups.count()
        half = groups.std() / count**0.5 * stats.t.ppf(0.975, count - 1)
        bounds = {
            end: jobs[f"{metric}/{end}"].groupby(settings).first()
            if f"{metric}/{end}" in jobs
            else pd.Series(dtype=float)
            for end in ("low", "high")
        }
        table[metric, "mean"] = mean
        table[metric, "low"] = (mean - half).where(count > 1, bounds["low"])
        table[metric, "high"] = (mean + half).where(count > 1, bounds["high"])
    return pd.DataFrame(table).dropna(how="all")


def main() -> None:
    """Prints the table as Markdown."""
    studies, *metrics = sys.argv[1:]
    print("| " + " | ".join(["setting", *metrics]) + " |")
    print("|---" * (len(metrics) + 1) + "|")
    for setting, row in over_seeds(studies.split(","), metrics).iterrows():
        cells = [
            "-"
            if pd.isna(row[metric, "mean"])
            else "{mean:.2f} ({low:.2f} to {high:.2f})".format(**row[metric])
            for metric in metrics
        ]
        print("| " + " | ".join([f"`{setting or 'default'}`", *cells]) + " |")


if __name__ == "__main__":
    main()
