"""A job's folder without the job: its model, plan and checkpoint, as `gr_sweep.job` leaves them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gr_sweep.components import save_model_files
from gr_sweep.export.run import Run, open_run
from gr_sweep.model.route import RoutedModel
from gr_sweep.train.checkpoint import Checkpoints, tensors_of
from gr_sweep.train.loop import TrainState
from tests.model.compare import route
from tests.model.tiny import tiny_model
from tests.reference import Cut


def make_run(
    folder: Path,
    plan_of: Any,
    family: str = "llama",
    *,
    metrics: dict[str, float] | None = None,
    **changes: Any,
) -> tuple[Run, RoutedModel]:
    """A folder with a tiny float32 model, and that model, routed.

    Args:
        plan_of: makes the plan of a config.
        metrics: of the summary.
        changes: of the model's config.
    """
    model: Any = tiny_model(family, **changes).float()
    routed = route(model, plan_of(model.config), Cut("none"))
    tokenizer = folder / "cache"
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    save_model_files(folder, model, tokenizer)
    (folder / "plan.json").write_text(routed.plan.to_json())
    summary = {
        "format": 1,
        "command": "gr-sweep seed=1",
        "fingerprints": {"config": "a", "text": "b"},
        "config": {"train": {"sequence_length": 8}},
        "metrics": metrics or {},
        "intervals": {},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    about = {"plan": routed.plan.to_json(), "state": asdict(TrainState(step=7))}
    tensors = tensors_of(model, torch.optim.AdamW(model.parameters()))
    Checkpoints(folder / "checkpoints", keep=1, fingerprint="a:b").save(7, about, tensors)
    return open_run(folder), routed
