"""A sweep's folder as pandas data frames, for notebooks and scripts: what the jobs ended with, and
their curves.

Values have the types that they are computed with; results.csv holds the same as text. Reads files
alone, never torch.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import is_number
from gr_sweep.errors import DataError
from gr_sweep.jobdir import METRICS, SUMMARY, job_folders, read_record, read_summary
from gr_sweep.report import collect
from gr_sweep.report.baselines import dotted
from gr_sweep.tracking.jsonl import read_rows

if TYPE_CHECKING:
    import pandas as pd

_STEP = "step"


def results(folder: str | os.PathLike[str]) -> "pd.DataFrame":
    """What the finished jobs of a sweep ended with, a row a job, in the order of the report.

    Columns, in this order:

    - `job` (text): name of the job's folder.
    - `label` (text): what sets the job apart, as the report says it (`edges=act seed=0`).
    - The settings in which the jobs differ, by dotted name (`edges`, `route.foreign_dropout`), then
      all others. Whole numbers are int64, others float64, yes and no are bool, the rest is text, a
      list as it is typed (`[code,biology]`). Where a job has none (`null`) the value is missing,
      as `isna` finds it, and whole numbers beside it are float64.
    - The metrics by name (`loss/full/code`, `separability/selectivity/code`, `mean_removal`,
      `cost/train_seconds`), float64: losses and their differences in nats per token, shares as
      numbers from 0 to 1, seconds, tokens per second, counts of parameters. NaN where a job lacks
      one, for instance because the folder has no baseline to compare it with.
    - Where a metric has a 95 % interval, its bounds: `<metric>/low` and `<metric>/high`, float64.

    `frame.attrs["varied"]` lists the settings in which the jobs differ.

    Args:
        folder: of a sweep, or of one job.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    sweep = collect.read_sweep(Path(folder))
    frame = collect.results(sweep, _value)
    frame.insert(1, "label", frame["job"].map(sweep.labels).astype(frame["job"].dtype))
    frame.attrs["varied"] = collect.varied_settings([job.settings for job in sweep.jobs])
    return frame


def history(folder: str | os.PathLike[str]) -> "pd.DataFrame":
    """The curves of a sweep, a row a job and step, by job and then by step; of the jobs that are
    done, and of those that run, were stopped or have failed as far as they came. For labels,
    `history(folder).merge(results(folder)[["job", "label"]])`.

    Columns, in this order:

    - `job` (text): name of the job's folder.
    - The settings in which these jobs differ, by dotted name, typed as in `results`.
    - `step` (int64): optimizer steps done; 0 is the evaluation before the first.
    - What was logged, float64, NaN at steps where it was not: `train/loss` and `train/loss/<label>`
      (nats per token, mean since the row before), `eval/loss/<domain>` (held out, nats per token),
      `train/lr`, `train/tokens` (so far), `train/tokens_per_second`, `train/grad_norm/<owners>`
      (before clipping), `time_s` (seconds in training and its evaluations so far).

    `frame.attrs["varied"]` lists the settings in which the jobs differ.

    Args:
        folder: of a sweep, or of one job.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    import pandas as pd

    logged = {}
    for job in job_folders(Path(folder)):
        steps: dict[int, dict[str, float]] = {}
        # Training and evaluation each write a row of their own.
        for row in read_rows(job / METRICS):
            steps.setdefault(row[_STEP], {}).update(
                {key: value for key, value in row.items() if key != _STEP and is_number(value)}
            )
        if steps:
            logged[job] = steps
    settings = {job: _settings(job) for job in logged}
    varied = collect.varied_settings(list(settings.values()))
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
    """What a job's numbers follow from, by dotted names; empty where it has not said."""
    record = read_record(job)
    if record is not None and record.settings:
        return dotted(record.settings)
    # Of a version that kept no record, or taken over from another sweep.
    try:
        config = read_summary(job / SUMMARY).get("config")
    except (OSError, DataError):
        return {}
    return dotted(config) if isinstance(config, dict) else {}


def _value(value: Any) -> Any:
    """A setting as it is, but for lists, which could not be grouped by."""
    return collect.shown(value) if isinstance(value, list) else value
