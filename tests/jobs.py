"""Small jobs on generated text, run in this process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gr_sweep.checks import validate
from gr_sweep.config import (
    DataConfig,
    DataKind,
    DomainConfig,
    EvalConfig,
    ModelConfig,
    PartitionConfig,
    Precision,
    RunConfig,
    TrackingConfig,
    TrackingMode,
    TrainConfig,
)
from gr_sweep.job import run_job

DOMAINS = ["code", "biology", "creative"]


def partition_of(domains: Sequence[str], **settings: Any) -> PartitionConfig:
    return PartitionConfig(domains={domain: DomainConfig() for domain in domains}, **settings)


def make_config(
    cache: Path,
    *,
    domains: Sequence[str] = DOMAINS,
    data: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    eval: Mapping[str, Any] | None = None,
    **parts: Any,
) -> RunConfig:
    """A job of four steps with two checkpoints.

    Args:
        cache: folder of the token caches.
        data, train, eval: settings that differ from this job's.
        parts: whole parts of the config.
    """
    generated = {"kind": DataKind.synthetic, "documents": 120, "vocab_size": 400}
    steps: dict[str, Any] = {"precision": Precision.float32, "log_every": 2}
    steps |= {"steps": 4, "batch_sequences": 6, "sequence_length": 32}
    evaluation = {"min_documents": 1, "tokens": 512, "document_tokens": 64, "bootstrap": 50}
    evaluation |= {"sample_tokens": 4}
    defaults: dict[str, Any] = {
        "model": ModelConfig(size="tiny"),
        "partition": partition_of(domains),
        "tracking": TrackingConfig(mode=TrackingMode.off),
    }
    config = RunConfig(
        data=DataConfig(**generated | {"cache": str(cache)} | dict(data or {})),
        train=TrainConfig(**steps | {"checkpoint_every": 2} | dict(train or {})),
        eval=EvalConfig(**evaluation | dict(eval or {})),
        **defaults | parts,
    )
    return validate(config)


def run(config: RunConfig, folder: Path, **how: Any) -> dict[str, Any]:
    """The summary of the job, which runs unless it is finished."""
    settings = {"sweep": "sweep", "overrides": ["a=1"], "command": "gr-sweep a=1"} | how
    run_job(config, folder, **settings)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of the job's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]
