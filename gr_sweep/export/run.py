"""What a job leaves for its export, and how a job's folder is read: model, plan, summary.

`model/` in the folder is a Hugging Face checkpoint without its weights, which `checkpoints/` has.
So the folder is enough, whatever becomes of the token cache.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import is_number
from gr_sweep.errors import DataError, JobError, PlanError
from gr_sweep.jobdir import (
    CHECKPOINTS,
    MODEL,
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
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Run:
    """A job's folder, as far as it can be read without torch."""

    folder: Path
    plan: RoutePlan
    """As plan.json has it."""
    summary: Mapping[str, Any]
    """Empty while the job is not finished."""

    @property
    def model_folder(self) -> Path:
        """Configs and tokenizer."""
        return self.folder / MODEL

    def last_round(self, plan: RoutePlan) -> tuple[Path, dict[str, Any]] | None:
        """Folder and round.json of the last round of a finished job; None where there is none of
        the plan's labels."""
        folders = [path for path in (self.folder / ROUNDS).glob("*") if path.name.isdecimal()]
        if not folders or not self.summary:
            return None
        folder = max(folders, key=lambda path: int(path.name))
        try:
            about = json.loads((folder / "round.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        is_of_plan = isinstance(about, dict) and about.get("labels") == list(plan.domains)
        return (folder, about) if is_of_plan else None

    @property
    def other_files(self) -> list[Path]:
        """All of `model/` but the model's config: the tokenizer, and how to generate."""
        return sorted(path for path in self.model_folder.iterdir() if path.name != _CONFIG)


def open_run(folder: Path) -> Run:
    """Reads a job's folder.

    Raises:
        JobError: it is none, or has not all that an export needs; says what to give instead.
    """
    if not os.path.isdir(folder):
        raise JobError(f"{folder} is no folder; give the folder of a job")
    if not is_job(folder):
        jobs = sorted(entry.name for entry in folder.iterdir() if is_job(entry))
        if jobs:
            raise JobError(
                f"{folder} is the folder of a sweep; give one of its jobs: {', '.join(jobs)}"
            )
        raise JobError(f"{folder} holds no job; give the folder of a job, as in outputs/SWEEP/JOB")
    summary = _summary(folder)
    if "taken_from" in summary:
        origin = folder.resolve().parent.parent / str(summary["taken_from"])
        raise JobError(
            f"the results in {folder} are taken over from another sweep; "
            f"the weights are in {os.path.relpath(origin)}: export that"
        )
    if not whole_checkpoints(folder / CHECKPOINTS):
        raise JobError(
            f"{folder} has no checkpoint"
            + ("" if summary else " and is not finished; type the command of the job again")
        )
    plan = folder / "plan.json"
    if not plan.exists() or not (folder / MODEL / _CONFIG).exists():
        missing = "plan.json" if not plan.exists() else f"{MODEL}/"
        raise JobError(
            f"{folder} has no {missing}: an earlier version of gr-sweep has run this job; run it "
            "again in another folder"
        )
    return Run(folder, _plan(folder, plan), summary)


def _plan(folder: Path, written: Path) -> RoutePlan:
    """The plan of the newest checkpoint's weights; the job's plan.json where that does not say.

    A run that makes its plan while it trains may have been stopped between the two.
    """
    _, newest = whole_checkpoints(folder / CHECKPOINTS)[-1]
    try:
        text = json.loads((newest / "run.json").read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        text = written.read_text(encoding="utf-8")  # loading the weights says what is wrong
    return RoutePlan.from_json(text)


def check_keep(plan: RoutePlan, keep: Sequence[str], folder: Path) -> None:
    """Raises JobError where `keep` names nothing that the plan could keep."""
    if len(plan.blocks) == 1:
        if keep:
            raise JobError(
                f"{folder} is a dense run: it has no blocks to remove; leave --keep out to export "
                "it whole"
            )
        return
    nodes = ", ".join(plan.nodes)
    if not keep:
        raise JobError(
            f"say what to keep with --keep; there are {nodes} (all of them: the full model)"
        )
    try:
        plan.kept_off(keep)
    except PlanError as error:
        wrong = [node for node in keep if node not in plan.nodes]
        raise JobError(f"--keep {wrong[0]} is no domain of {folder}; there are {nodes}") from error


def check_target(to: Path) -> None:
    """Raises JobError where a checkpoint cannot go."""
    try:
        if to.is_dir() and any(to.iterdir()):
            raise JobError(f"--to {to} is not empty; give a new folder")
        if to.exists() and not to.is_dir():
            raise JobError(f"--to {to} is a file; give a new folder")
        above = next(place for place in to.absolute().parents if place.exists())
        if not above.is_dir():
            raise JobError(f"--to {to} cannot be made: {above} is a file")
    except OSError as error:
        raise JobError(f"--to {to} cannot be a folder ({error.strerror})") from error


def load_routed(run: Run) -> "tuple[RoutedModel, int]":
    """The job's model with the weights of its newest checkpoint, routed, and that one's step.

    Raises:
        DataError: a checkpoint that cannot be read, or one of another run.
        JobError: a config or weights that do not go together.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from gr_sweep.model.route import route_model
    from gr_sweep.model.sizes import random_model
    from gr_sweep.train.checkpoint import read_newest

    try:
        config = AutoConfig.from_pretrained(
            run.model_folder, local_files_only=True, trust_remote_code=False
        )
        model = random_model(config, seed=0).eval()
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ZeroDivisionError,
        RuntimeError,  # torch's, of a size that is none, and Python's, of brackets in brackets
        StrictDataclassError,
    ) as error:
        raise JobError(
            f"{run.model_folder} cannot be read: {str(error) or type(error).__name__}"
        ) from error
    about = read_newest(run.folder / CHECKPOINTS, model)
    # A run that went on with other settings all the same has checkpoints of those it began with.
    prints = None if run.summary.get("changes") else run.summary.get("fingerprints")
    if prints and about["fingerprint"] != f"{prints['config']}:{prints['text']}":
        raise JobError(
            f"the checkpoint in {run.folder} is not of the run that its summary.json is of"
        )
    routed = route_model(model, run.plan.in_place(), "none")
    return routed, int(about["state"]["step"])


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        summary = read_summary(path)
    except (OSError, DataError) as error:
        raise JobError(f"{path} cannot be read: {error}") from error
    if summary.get("format") != 1:
        raise JobError(f"{path} is none that this version reads")
    if wrong := next(_wrong_in(summary), None):
        raise JobError(f"{path} is not as a job writes it: {wrong}")
    return summary


def _wrong_in(summary: Mapping[str, Any]) -> Iterator[str]:
    """What of a summary an export could not use."""
    for name in ("fingerprints", "config", "metrics", "intervals"):
        if not isinstance(summary.get(name, {}), dict):
            yield f"{name} is no object"
            return
    prints = summary.get("fingerprints")
    if prints and not all(isinstance(prints.get(name), str) for name in ("config", "text")):
        yield "fingerprints has no text for config and text"
    domains = summary.get("domains", [])
    if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
        yield "domains is no list of names"
    config = summary.get("config", {})
    for name in ("train", "method"):
        if not isinstance(config.get(name, {}), dict):
            yield f"config.{name} is no object"
            return
    length = config.get("train", {}).get("sequence_length")
    if length is not None and (type(length) is not int or not 0 < length < 1 << 31):
        yield f"config.train.sequence_length={length!r} is no whole number above 0"
    if not is_number(config.get("method", {}).get("recovery", 0.0)):
        yield "config.method.recovery is no number"
    for key, value in summary.get("metrics", {}).items():
        if value is not None and not is_number(value):
            yield f"metric {key} is {value!r}, no number"
    for key, value in summary.get("intervals", {}).items():
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)):
            yield f"the interval of {key} is no pair of numbers"
