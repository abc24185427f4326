"""Reads the folder of a job for an export: its plan, its summary, and its model with the weights.

`model/` in the folder is a Hugging Face checkpoint without weights, which are in `checkpoints/`.
The token cache is not needed.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.errors import DataError, JobError, PlanError
from gr_sweep.jobdir import (
    CHECKPOINTS,
    MODEL,
    PLAN,
    ROUNDS,
    SUMMARY,
    is_job,
    read_summary,
    whole_checkpoints,
)
from gr_sweep.routing.plan import RoutePlan

if TYPE_CHECKING:
    from gr_sweep.model.route import RoutedModel

_CONFIG = "config.json"


@dataclass(frozen=True)
class Run:
    """What can be read of a job without torch."""

    folder: Path
    plan: RoutePlan
    """Of the newest checkpoint."""
    summary: Mapping[str, Any]
    """Empty while the job is not finished."""

    @property
    def other_files(self) -> list[Path]:
        """The tokenizer's files and the generation config."""
        return sorted(path for path in (self.folder / MODEL).iterdir() if path.name != _CONFIG)

    def last_round(self) -> dict[str, Any]:
        """round.json of the last round, if the plan's labels are those of that round; else empty.

        It holds losses by the labels of the plan, as the summary does by domains.
        """
        paths = [path for path in (self.folder / ROUNDS).glob("*") if path.name.isdecimal()]
        if not paths or not self.summary:
            return {}
        last = max(paths, key=lambda path: int(path.name))
        try:
            about = json.loads((last / "round.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        is_of_plan = isinstance(about, dict) and about.get("labels") == list(self.plan.domains)
        return about if is_of_plan else {}


def open_run(folder: Path) -> Run:
    """Reads a job's folder.

    Raises:
        JobError: it is not the folder of a job, or lacks what an export needs.
    """
    if not os.path.isdir(folder):
        raise JobError(f"{folder} is not a folder; give the folder of a job")
    if not is_job(folder):
        jobs = sorted(entry.name for entry in folder.iterdir() if is_job(entry))
        if jobs:
            names = ", ".join(jobs)
            raise JobError(f"{folder} is the folder of a sweep; give one of its jobs: {names}")
        raise JobError(f"{folder} holds no job; give the folder of a job, as in outputs/SWEEP/JOB")
    summary = _summary(folder)
    if "taken_from" in summary:
        origin = folder.resolve().parent.parent / str(summary["taken_from"])
        raise JobError(
            f"{folder} holds results of another sweep and no weights; export "
            f"{os.path.relpath(origin)} instead"
        )
    checkpoints = whole_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        reason = "" if summary else " and is not finished; repeat the command of the job"
        raise JobError(f"{folder} has no checkpoint{reason}")
    for name in (PLAN, f"{MODEL}/{_CONFIG}"):
        if not (folder / name).exists():
            raise JobError(
                f"{folder} has no {name}: an older gr-sweep ran this job; run it again in another "
                "folder"
            )
    # A job that changes its plan while it trains may have been stopped between plan.json and the
    # checkpoint of that plan.
    try:
        plan = json.loads((checkpoints[-1][1] / "run.json").read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        plan = (folder / PLAN).read_text(encoding="utf-8")  # loading the weights reports the damage
    return Run(folder, RoutePlan.from_json(plan), summary)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        summary = read_summary(path)
    except (OSError, DataError) as error:
        raise JobError(f"{path} cannot be read: {error}") from error
    if summary.get("format") != 1:
        raise JobError(f"{path} does not have the format of this version of gr-sweep")
    return summary


def check_keep(plan: RoutePlan, keep: Sequence[str], folder: Path) -> None:
    """Raises JobError if the domains cannot be kept."""
    if len(plan.blocks) == 1:
        if keep:
            raise JobError(f"{folder} is a dense run, without blocks to remove; omit --keep")
        return
    nodes = ", ".join(plan.nodes)
    if not keep:
        raise JobError(f"--keep is needed; expected one or more of {nodes}")
    try:
        plan.kept_off(keep)
    except PlanError as error:
        wrong = next(node for node in keep if node not in plan.nodes)
        raise JobError(f"invalid value for --keep: {wrong!r}; expected one of {nodes}") from error


def check_target(to: Path) -> None:
    """Raises JobError if a checkpoint cannot be written to this folder."""
    try:
        if to.is_dir() and any(to.iterdir()):
            raise JobError(f"--to {to} is not empty; give a new folder")
        if to.exists() and not to.is_dir():
            raise JobError(f"--to {to} is a file; give a new folder")
        above = next(parent for parent in to.absolute().parents if parent.exists())
        if not above.is_dir():
            raise JobError(f"--to {to} cannot be made: {above} is a file")
    except OSError as error:
        raise JobError(f"--to {to} cannot be a folder ({error.strerror})") from error


def load_routed(run: Run) -> "tuple[RoutedModel, int]":
    """The job's model with the weights of its newest checkpoint, and the step of that.

    Raises:
        DataError: the checkpoint cannot be read.
        JobError: the model's config cannot be read, or the checkpoint is of another run.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from gr_sweep.model.route import route_model
    from gr_sweep.model.sizes import random_model
    from gr_sweep.train.checkpoint import read_newest

    folder = run.folder / MODEL
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = random_model(config, seed=0).eval()
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ZeroDivisionError,
        RuntimeError,  # of torch, for impossible sizes, and of Python, for deeply nested JSON
        StrictDataclassError,
    ) as error:
        raise JobError(f"{folder} cannot be read: {str(error) or type(error).__name__}") from error
    about = read_newest(run.folder / CHECKPOINTS, model)
    # After resume=force the checkpoints keep the fingerprint that the job began with.
    prints = None if run.summary.get("changes") else run.summary.get("fingerprints")
    if prints and about["fingerprint"] != f"{prints.get('config')}:{prints.get('text')}":
        raise JobError(f"the checkpoint in {run.folder} is not of the run of its summary.json")
    routed = route_model(model, run.plan.in_place(), "none")
    return routed, int(about["state"]["step"])
