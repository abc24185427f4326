"""A sweep as pandas data frames, for results.csv, notebooks and scripts. Never imports torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import is_number
from gr_sweep.jobdir import METRICS, flatten, job_folders, read_finished, read_record
from gr_sweep.report import collect
from gr_sweep.report.sweep import Sweep, shown, varied_settings
from gr_sweep.tracking.jsonl import read_rows

if TYPE_CHECKING:
    import pandas as pd

_STEP = "step"


def results(folder: str | os.PathLike[str]) -> "pd.DataFrame":
    """What the finished jobs of a sweep ended with, as `results_of` has it.

    Args:
        folder: of a sweep, or of one job.

    Raises:
        JobError: the folder does not exist or contains no job.
    """
    return results_of(collect.read_sweep(Path(folder)))


def results_of(sweep: Sweep) -> "pd.DataFrame":
    """One row for each finished job, in the order of the report.

    Columns, in this order:

    - `job` (name of its folder) and `label` (what distinguishes it: `edges=act seed=0`).
    - The settings in which the jobs differ, by dotted name (`route.foreign_dropout`), then all
      others: int64, float64, bool or text; a list is text as it is typed (`[code,biology]`). A
      setting that is `null` is missing, and integers next to it are float64.
    - `code`, `text`: fingerprints of the code that ran the job and of its text.
    - The metrics by name (`loss/full/code`, `mean_removal`), float64, in the units of docs/metrics;
      NaN where a job lacks one, for instance because the folder has no baseline for it.
    - `<metric>/low` and `<metric>/high`, float64: bounds of the 95 % interval, if there is one.

    `frame.attrs["varied"]` lists the settings in which the jobs differ.
    """
    import pandas as pd

    varied = varied_settings([job.settings for job in sweep.jobs])
    names = dict.fromkeys([*varied, *(name for job in sweep.jobs for name in job.settings)])
    bounds = [
        {f"{key}/{side}": at for key, ends in job.intervals.items()
         for side, at in zip(("low", "high"), ends, strict=True)}
        for job in sweep.jobs
    ]  # fmt: skip
    rows = [
        {"job": job.name, "label": sweep.labels[job.name]}
        | {name: _value(of) for name, of in job.settings.items()}
        | {"code": job.fingerprints.get("code"), "text": job.text}
        | {**job.metrics, **of_bounds}
        for job, of_bounds in zip(sweep.jobs, bounds, strict=True)
    ]
    metrics = [key for of in (*(job.metrics for job in sweep.jobs), *bounds) for key in of]
    columns = ["job", "label", *names, "code", "text", *metrics]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))
    frame.attrs["varied"] = varied
    return frame


def history(folder: str | os.PathLike[str]) -> "pd.DataFrame":
    """The curves of a sweep, one row for each job and step, in that order. Jobs that are running,
    were stopped or have failed are included as far as they came. For labels:
    `history(folder).merge(results(folder)[["job", "label"]])`.

    Columns, in this order:

    - `job`, and the settings in which these jobs differ, as in `results`.
    - `step` (int64): optimizer steps done; 0 is the evaluation before the first.
    - What was logged, float64, NaN at other steps: `train/loss`, `eval/loss/<domain>`, `train/lr`
      and others, in the units of docs/metrics.

    `frame.attrs["varied"]` lists the settings in which the jobs differ.

    Args:
        folder: of a sweep, or of one job.

    Raises:
        JobError: the folder does not exist or contains no job.
    """
    import pandas as pd

    logged = {}
    for job in job_folders(Path(folder)):
        steps: dict[int, dict[str, float]] = {}
        # Training and evaluation write separate rows.
        for row in read_rows(job / METRICS):
            steps.setdefault(row[_STEP], {}).update(
                {key: value for key, value in row.items() if key != _STEP and is_number(value)}
            )
        if steps:
            logged[job] = steps
    settings = {job: _settings(job) for job in logged}
    varied = varied_settings(list(settings.values()))
    rows = [
        {"job": job.resolve().name}
        | {name: _value(settings[job].get(name)) for name in varied}
        | {_STEP: step}
        | values
        for job, steps in logged.items()
        for step, values in sorted(steps.items())
    ]
    keys = dict.fromkeys(key for steps in logged.values() for row in steps.values() for key in row)
    frame = pd.DataFrame(rows, columns=["job", *varied, _STEP, *keys])
    frame = frame.astype({_STEP: "int64"} | dict.fromkeys(keys, "float64"))
    frame.attrs["varied"] = varied
    return frame


def _settings(job: Path) -> dict[str, Any]:
    """Settings of a job by dotted name, from its record or else its summary."""
    record = read_record(job)
    if record.settings:
        return flatten(record.settings)
    return flatten((read_finished(job) or {}).get("config", {}))


def _value(value: Any) -> Any:
    """A setting as it is; a list as text, because lists cannot be grouped by."""
    return shown(value) if isinstance(value, list) else value
