"""A sweep as tables: results.csv, and pandas data frames for notebooks and scripts. Never imports
torch."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import is_number
from gr_sweep.jobdir import METRICS, flatten, job_folders, read_finished, read_record
from gr_sweep.report import collect
from gr_sweep.report.sweep import Sweep, shown, varied_settings
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import read_rows

if TYPE_CHECKING:
    import pandas as pd


def results(folder: str | os.PathLike[str]) -> "pd.DataFrame":
    """What the finished jobs of a sweep ended with: a row for each, in the order of the report.

    Columns, in this order: `job` (name of its folder) and `label` (its title); settings by dotted
    name, those in which the jobs differ first (int64, float64, bool or text; a list is text as it
    is typed; what is `null` is missing, and integers next to it are float64); `code` and `text`,
    fingerprints of the code that ran the job and of its text; metrics by name, float64, in the
    units of docs/metrics, NaN where a job lacks one, for instance for want of a baseline; and
    `<metric>/low` and `<metric>/high`, float64: bounds of the 95 % interval, if there is one.
    `frame.attrs["varied"]` lists the settings in which the jobs differ.

    Args:
        folder: of a sweep, or of one job.

    Raises:
        JobError: the folder does not exist or contains no job.
    """
    import pandas as pd

    sweep = collect.read_sweep(Path(folder))
    columns, rows = _columns(sweep)
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["varied"] = varied_settings([job.settings for job in sweep.jobs])
    return frame


def csv_of(sweep: Sweep) -> str:
    """The same as the text of results.csv; without pandas, which takes long to import."""
    text = io.StringIO()
    columns, rows = _columns(sweep)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _columns(sweep: Sweep) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns, and the rows."""
    settings, others = [], []
    for job in sweep.jobs:
        settings.append({"job": job.name, "label": sweep.labels[job.name], **_plain(job.settings)})
        bounds = {f"{key}/{side}": ends[at] for key, ends in job.intervals.items()
                  for at, side in enumerate(("low", "high"))}  # fmt: skip
        prints = {"code": job.fingerprints.get("code"), "text": job.text}
        others.append({**prints, **job.metrics, **bounds})
    varied = varied_settings([job.settings for job in sweep.jobs])
    names = [key for of in settings for key in of] + ["code", "text"]
    names += [key for job in sweep.jobs for key in job.metrics] + [
        key for of in others for key in of
    ]
    rows = [{**of, **other} for of, other in zip(settings, others, strict=True)]
    return list(dict.fromkeys(["job", "label", *varied, *names])), rows


def history(folder: str | os.PathLike[str]) -> "pd.DataFrame":
    """The curves of a sweep, one row for each job and step, in that order. Jobs that are running,
    were stopped or have failed are included as far as they came. For labels:
    `history(folder).merge(results(folder)[["job", "label"]])`.

    Columns, in this order: `job`; the settings in which these jobs differ, as in `results`; `step`
    (int64), optimizer steps done, 0 for the evaluation before the first; and what was logged
    (`train/loss`, `eval/loss/<domain>`, `train/lr`), float64, in the units of docs/metrics, NaN at
    other steps.
    `frame.attrs["varied"]` lists the settings in which the jobs differ.

    Args:
        folder: of a sweep, or of one job.

    Raises:
        JobError: the folder does not exist or contains no job.
    """
    import pandas as pd

    logged = {job: read_rows(job / METRICS) for job in job_folders(Path(folder))}
    settings = {job: _settings(job) for job, rows in logged.items() if rows}
    varied = varied_settings(list(settings.values()))
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for job, of_job in settings.items():
        plain = _plain({name: of_job.get(name) for name in varied})
        # Training and evaluation write separate rows.
        for row in sorted(logged[job], key=lambda row: row[STEP]):
            of_step = rows.setdefault((job.name, row[STEP]), {"job": job.name, **plain})
            of_step |= {key: value for key, value in row.items() if is_number(value)}
    keys = [key for of in rows.values() for key in of if key not in ("job", *varied)]
    columns = list(dict.fromkeys(["job", *varied, STEP, *keys]))
    frame = pd.DataFrame(list(rows.values()), columns=columns)
    kinds = {STEP: "int64"} | dict.fromkeys(columns[len(varied) + 2 :], "float64")
    frame = frame.astype(kinds)
    frame.attrs["varied"] = varied
    return frame


def _settings(job: Path) -> dict[str, Any]:
    """Settings of a job by dotted name, from its record or else its summary."""
    return flatten(read_record(job).settings or (read_finished(job) or {}).get("config", {}))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A list as text, because lists cannot be grouped by."""
    return {name: shown(of) if isinstance(of, list) else of for name, of in settings.items()}
