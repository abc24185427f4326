"""Folders of sweeps as jobs leave them, with losses like those of the prototype (DESIGN section
10)."""

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr_sweep.config import DomainConfig, Edges, PlanKind, RunConfig
from gr_sweep.metrics import keys
from gr_sweep.metrics.losses import DocumentLoss, Text, View, summarize_losses, write_losses

DOMAINS = ["code", "biology", "creative"]

FULL = {
    "dense": (4.03, 4.15, 4.57),
    "none": (4.09, 4.18, 4.60),
    "weight": (5.02, 5.22, 5.35),
    "act": (4.16, 4.28, 4.66),
    "both": (6.66, 6.42, 6.42),
}
"""L(d) of code, biology and creative at foreign dropout 0.5."""

OWN_COST = {
    "none": (0.2, 0.3, 0.4),
    "weight": (1.5, 0.7, 0.7),
    "act": (0.2, 0.4, 0.4),
    "both": (0.5, 0.5, 0.5),
}
KEPT_GAIN = {"none": 0.02, "weight": 0.03, "act": 0.02, "both": 0.22}

MakeSweep = Callable[..., Path]


def plain(value: Any) -> Any:
    """A config as summary.json holds it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def document_losses(
    edges: str, domains: Sequence[str], rng: np.random.Generator, num_documents: int
) -> list[DocumentLoss]:
    rows = []
    shift = rng.normal(0, 0.03)
    noise = {(part, domain): rng.normal(0, 0.03) for part in domains for domain in domains}
    for at, domain in enumerate(domains):
        for number in range(num_documents):
            tokens = int(rng.integers(80, 512))
            mean = FULL[edges][at % 3] + shift + rng.normal(0, 0.25)
            document = hashlib.sha256(f"{domain}{number}".encode()).hexdigest()[:16]

            def row(
                view: View, part: str, loss: float, domain: str = domain,
                document: str = document, tokens: int = tokens,
            ) -> DocumentLoss:  # fmt: skip
                return DocumentLoss(
                    view, part, domain, Text.plain, document, loss * tokens, tokens, 4 * tokens
                )

            rows.append(row(View.full, "", mean))
            if edges == "dense":
                continue
            for part in domains:
                cost = noise[part, domain] + rng.normal(0, 0.05)
                if part == domain:
                    kept = mean - KEPT_GAIN[edges]
                    cost += OWN_COST[edges][at % 3]
                else:
                    kept = mean + 1.5 * OWN_COST[edges][at % 3] + rng.normal(0, 0.05)
                rows.append(row(View.removed, part, mean + cost))
                rows.append(row(View.kept, part, kept))
    return rows


def history(
    metrics: dict[str, float], domains: Sequence[str], rng: np.random.Generator, steps: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        share = math.exp(-4 * step / steps)
        means = {d: metrics[keys.loss_full(d)] + (8.3 - 5) * share for d in domains}
        row: dict[str, Any] = {"step": step, "time_s": step * 0.31}
        row |= {keys.train_loss(d): mean + rng.normal(0, 0.12) for d, mean in means.items()}
        row["train/loss"] = sum(row[keys.train_loss(d)] for d in domains) / len(domains)
        row["train/tokens"] = step * 12 * 256
        rows.append(row)
        if step % (steps // 4) == 0:
            rows.append({"step": step} | {keys.eval_loss(d): mean for d, mean in means.items()})
    return rows


def write_job(
    sweep: Path,
    *,
    edges: str = "both",
    seed: int = 0,
    domains: Sequence[str] = DOMAINS,
    plan: str = "peers",
    foreign_dropout: float = 0.5,
    overrides: Sequence[str] | None = None,
    command: str = "gr-sweep -m edges=none,both,act,weight seed=0,1,2",
    num_documents: int = 24,
    resamples: int = 200,
    steps: int = 300,
) -> Path:
    """A finished job; edges `dense` is a job without a plan."""
    rng = np.random.default_rng([seed, len(edges), int(100 * foreign_dropout)])
    config = RunConfig(seed=seed)
    config.partition.domains = {domain: DomainConfig() for domain in domains}
    config.route.foreign_dropout = foreign_dropout
    config.plan.kind = PlanKind.none if edges == "dense" else PlanKind(plan)
    if edges != "dense":
        config.edges = Edges(edges)
    if overrides is None:
        overrides = [
            "plan=none" if edges == "dense" else f"edges={edges}",
            f"route.foreign_dropout={foreign_dropout}",
            f"seed={seed}",
        ]
    rows = document_losses(edges, domains, rng, num_documents)
    metrics, intervals = summarize_losses(rows, domains, seed=seed, resamples=resamples)
    metrics[keys.COST_TOKENS_PER_SECOND] = float(rng.normal(9000, 300))
    metrics[keys.COST_TRAIN_SECONDS] = 104.2
    metrics[keys.COST_EVAL_SECONDS] = 11.8
    metrics[keys.COST_PARAMETERS] = 4.3e6
    if edges != "dense":
        metrics |= {keys.parameters_kept(domain): 3.1e6 for domain in domains}
    job = sweep / "_".join([*overrides, "1f3a9c"]).replace("/", "-")
    (job / ".hydra").mkdir(parents=True)
    write_losses(job / "document_losses.csv", rows)
    lines = [json.dumps(row) + "\n" for row in history(metrics, domains, rng, steps)]
    (job / "metrics.jsonl").write_text("".join(lines))
    summary = {
        "format": 1,
        "job": job.name,
        "sweep": sweep.name,
        "command": command,
        "overrides": list(overrides),
        "domains": list(domains),
        "config": plain(dataclasses.asdict(config)),
        "fingerprints": {"code": "b1946ac9", "config": "2c26b46b", "data": "fcde2b2e"},
        "environment": {"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "cpus": 2},
        "metrics": metrics,
        "intervals": intervals,
        "started": "2026-03-02T10:12:31+00:00",
        "finished": "2026-03-02T10:31:02+00:00",
    }
    (job / "summary.json").write_text(json.dumps(summary))
    return job


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The four edge choices and a dense run, one seed."""
    folder = tmp_path / "edges on real text"
    for edges in ("none", "both", "act", "weight", "dense"):
        write_job(folder, edges=edges)
    return folder


@pytest.fixture
def make_job() -> Callable[..., Path]:
    """`write_job`, for tests that need other jobs."""
    return write_job
