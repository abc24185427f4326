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

from gr_sweep.errors import JobError, PlanError
from gr_sweep.jobdir import CHECKPOINTS, MODEL, SUMMARY, is_job, read_summary, whole_checkpoints
from gr_sweep.routing.plan import RoutePlan

if TYPE_CHECKING:
    from gr_sweep.model.route import RoutedModel


@dataclass(frozen=True)
class Run:
    """What can be read of a job without torch."""

    folder: Path
    plan: RoutePlan
    """Of the newest checkpoint."""
    summary: Mapping[str, Any]
    """Empty while the job is not finished."""


def open_run(folder: Path) -> Run:
    """Reads a job's folder.

    Raises:
        DataError: its summary is damaged.
        JobError: it is not the folder of a job, or lacks what an export needs.
        PlanError: the plan of its newest checkpoint is damaged, or of another version.
    """
    if not is_job(folder):
        jobs = sorted(path.name for path in folder.glob("*") if is_job(path))
        what = f"one of its jobs: {', '.join(jobs)}" if jobs else "outputs/SWEEP/JOB"
        raise JobError(f"{folder} is not the folder of a job; give {what}")
    path = folder / SUMMARY
    summary = read_summary(path) if path.exists() else {}
    if summary.get("format", 1) != 1:
        raise JobError(f"{path} does not have the format of this version of gr-sweep")
    if "taken_from" in summary:
        origin = folder.resolve().parent.parent / str(summary["taken_from"])
        raise JobError(
            f"{folder} holds results of another sweep and no weights; export "
            f"{os.path.relpath(origin)} instead"
        )
    checkpoints = whole_checkpoints(folder / CHECKPOINTS)
    has_model = (folder / MODEL / "config.json").exists()
    if not has_model or not checkpoints:
        what = "checkpoint" if has_model else f"{MODEL}/config.json"
        raise JobError(f"{folder} has no {what}; repeat the command of the job")
    try:
        about = json.loads((checkpoints[-1][1] / "run.json").read_text(encoding="utf-8"))
        return Run(folder, RoutePlan.from_json(about["plan"]), summary)
    except (OSError, ValueError, LookupError, PlanError) as error:
        raise PlanError(f"{folder}: {error}") from error


def check_keep(plan: RoutePlan, keep: Sequence[str], folder: Path) -> None:
    """Checks the domains to keep.

    Raises:
        GrSweepError: one is unknown, or a dense run has any, or another run none.
    """
    if len(plan.blocks) == 1 and keep:
        raise JobError(f"{folder} is a dense run, without blocks to remove; omit --keep")
    if len(plan.blocks) > 1 and not keep:
        raise JobError(f"--keep is needed; expected one or more of {', '.join(plan.nodes)}")
    plan.kept_off(keep)


def load_routed(run: Run) -> "tuple[RoutedModel, int]":
    """The job's model with the weights of its newest checkpoint, and the step of that.

    Raises:
        DataError: the checkpoint cannot be read.
        JobError: the checkpoint is of another run.
        PlanError: the model's config cannot be read.
    """
    from transformers import AutoConfig

    from gr_sweep.model.pretrained import loading
    from gr_sweep.model.route import route_model
    from gr_sweep.model.sizes import random_model
    from gr_sweep.train.checkpoint import read_newest

    folder = run.folder / MODEL
    with loading(str(folder)):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = random_model(config, seed=0).eval()
    routed = route_model(model, run.plan.in_place(), "none")  # first: it adds adapters
    about = read_newest(run.folder / CHECKPOINTS, model)
    # After resume=force the checkpoints keep the fingerprint that the job began with.
    prints = None if run.summary.get("changes") else run.summary.get("fingerprints")
    if prints and about["fingerprint"] != f"{prints['config']}:{prints['text']}":
        raise JobError(f"the checkpoint in {run.folder} is not of the run of its summary.json")
    return routed, int(about["state"]["step"])
