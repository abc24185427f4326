"""Folders of sweeps as jobs leave them, with losses like those of small real runs."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr_sweep.config import (
    DomainConfig,
    Edges,
    Method,
    PlanKind,
    RouteConfig,
    RunConfig,
    TrainConfig,
    num_steps,
    to_plain,
)
from gr_sweep.domains import labels_of_round
from gr_sweep.metrics import registry
from gr_sweep.metrics.compare import summarize_losses
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, Text, View, write_losses
from gr_sweep.report import read_sweep
from gr_sweep.report.sweep import Sweep
from gr_sweep.routing.plan import Block, RoutePlan

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
NEVER_TRAINED = 2.5
"""What a filtered model's loss is above a dense one's on what it never saw, nats."""
TRANSFER = 0.05
"""And on the others."""


def document_losses(
    edges: str,
    rng: np.random.Generator,
    num_documents: int,
    *,
    method: str,
    plan: str,
    without: Sequence[str],
    forget: Sequence[str],
    share: float,
    shift: float | None,
    calibrate: bool,
) -> list[DocumentLoss]:
    """Every view of every document. A document is as hard in every job: baselines pair by it."""
    rows: list[DocumentLoss] = []
    shift = rng.normal(0, 0.03) if shift is None else shift
    noise = {pair: rng.normal(0, 0.03) for pair in itertools.product(DOMAINS, DOMAINS)}
    parts = [] if edges == "dense" else list(forget or DOMAINS)
    sizes = range(1, len(DOMAINS)) if plan == "lattice" else ()
    blocks = [subset for size in sizes for subset in itertools.combinations(DOMAINS, size)]
    for (at, domain), number in itertools.product(enumerate(DOMAINS), range(num_documents)):
        document = hashlib.sha256(f"{domain}{number}".encode()).hexdigest()[:16]
        own = np.random.default_rng(int(document, 16))
        tokens = int(own.integers(80, 512))
        mean = FULL["dense"][at] + 0.3 if method == "demix" else FULL[edges][at]
        mean += 0.35 * math.log2(1 / share) + shift + own.normal(0, 0.25) + rng.normal(0, 0.02)
        mean += sum(NEVER_TRAINED if part == domain else TRANSFER for part in without)
        losses = [
            (View.full, "", mean),
            (View.served, "", mean - 0.25 * (method == "demix") - 0.01 * bool(parts)),
        ]
        for block in blocks:
            cost = 0.6 / len(block) if domain in block else 0.02
            losses.append((View.off, "+".join(block), mean + cost + rng.normal(0, 0.05)))
        losses += [(View.calibrated_full, part, mean - 0.1) for part in without if calibrate]
        for part in parts:
            cost = noise[part, domain] + rng.normal(0, 0.05)
            if method == "random":
                cost += 0.3
            elif part == domain:
                cost += OWN_COST[edges][at] + 1.2 * bool(forget)
            kept = mean - 0.02 if part == domain else mean + 1.5 * OWN_COST[edges][at]
            losses += [
                (View.removed, part, mean + cost),
                (View.served_removed, part, mean + cost),
                (View.kept, part, kept),
            ]
            if calibrate and part == domain:
                losses += [
                    (View.calibrated_full, part, mean - 0.05),
                    (View.calibrated_removed, part, mean + 0.7 * cost),
                ]
        rows += [
            DocumentLoss(view, part, domain, Text.plain, document, of * tokens, tokens, 4 * tokens)
            for view, part, of in losses
        ]
    return rows


def relearn_losses(rows: Sequence[DocumentLoss], view: View, without: str) -> list[RelearnLoss]:
    """An attack of 4,000 tokens on each removed part at two learning rates; the second is
    stronger."""
    found = []
    for row in rows:
        part = row.part if view is View.removed else without
        if row.view is not view or row.domain != part:
            continue
        for lr, speed in ((1e-3, 0.01), (3e-3, 0.04)):
            for trained in (0, 1000, 2000, 4000):
                gain = 0.8 * (1 - math.exp(-speed * trained / 100)) * row.tokens
                size = (row.domain, row.document, row.loss_nats - gain, row.tokens, row.bytes)
                found.append(RelearnLoss(view, part, lr, trained, *size))
    return found


def history(
    metrics: dict[str, float], rng: np.random.Generator, steps: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        above = 3 * math.exp(-4 * step / steps)
        means = {d: metrics[registry.LOSS_FULL(d)] + above for d in DOMAINS}
        losses = {registry.TRAIN_LOSS_OF(d): of + rng.normal(0, 0.12) for d, of in means.items()}
        rows.append({"step": step, "train/loss": sum(losses.values()) / len(DOMAINS)} | losses)
        if step % (steps // 4) == 0:
            rows.append({"step": step} | {registry.EVAL_LOSS(d): of for d, of in means.items()})
    return rows


def changed(config: RunConfig, name: str, value: Any) -> RunConfig:
    """The config, with another value of a setting by its dotted name."""
    *groups, last = name.split(".")
    node: Any = config
    for group in groups:
        node = getattr(node, group)
    setattr(node, last, value)
    return config


def write_job(
    sweep: Path,
    *,
    edges: str = "both",
    seed: int = 0,
    plan: str = "peers",
    foreign_dropout: float = 0.5,
    method: str | None = None,
    without: Sequence[str] = (),
    forget: Sequence[str] = (),
    share: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] | None = None,
    command: str | None = None,
    num_documents: int = 2,
    resamples: int = 0,
    steps: int = 300,
    shift: float | None = None,
    robust: bool = False,
) -> Path:
    """A finished job; edges `dense` is a job without a plan.

    Args:
        share: of the tokens, for a shorter dense run.
        settings: dotted names to values, over the config.
        shift: added to all losses; None draws it.
        robust: with calibrated losses and relearning attacks.
    """
    rng = np.random.default_rng([seed, len(edges), int(100 * foreign_dropout)])
    config = RunConfig(seed=seed)
    config.partition.domains = {domain: DomainConfig() for domain in DOMAINS}
    config.route.foreign_dropout = foreign_dropout
    config.plan.kind = PlanKind.none if edges == "dense" else PlanKind(plan)
    config.plan.forget = list(forget)
    config.method.name = Method(method or "routed")
    config.method.without = list(without)
    config.eval.bootstrap = 100
    if edges != "dense":
        config.edges = Edges(edges)
    elif method is not None:
        config.edges, config.route = Edges.none, RouteConfig()
    config.train.steps = round((config.train.steps or 0) * share)
    for name, value in (settings or {}).items():
        changed(config, name, value)
    if overrides is None:
        overrides = [
            *([f"method={method}"] if method else ["plan=none"] if edges == "dense" else []),
            *([f"method.without=[{','.join(without)}]"] if without else []),
            *([f"edges={edges}"] if edges != "dense" else []),
            *([f"plan={plan}"] if plan != "peers" else []),
            *([f"train.steps={config.train.steps}"] if share < 1 else []),
            *(f"{name}={value}" for name, value in (settings or {}).items()),
            *([f"route.foreign_dropout={foreign_dropout}"] if foreign_dropout != 0.5 else []),
            f"seed={seed}",
        ]
    rows = document_losses(
        edges, rng, num_documents, method=method or "routed", plan=plan, without=without,
        forget=forget, share=share, shift=shift, calibrate=robust,
    )  # fmt: skip
    metrics, intervals = summarize_losses(rows, DOMAINS, seed=seed, resamples=resamples)
    metrics[registry.COST_TOKENS_PER_SECOND.key] = float(rng.normal(9000, 300))
    metrics[registry.COST_TRAIN_SECONDS.key] = 104.2
    metrics[registry.COST_PARAMETERS.key] = 4.3e6
    if edges != "none":
        metrics[registry.FOREIGN_DROPOUT.key] = foreign_dropout
    job = sweep / "_".join([*overrides, "1f3a9c"]).replace("/", "-").replace(" ", "")
    (job / ".hydra").mkdir(parents=True)
    write_losses(job / "document_losses.csv", rows)
    off = dict.fromkeys(row.part for row in rows if row.view is View.off)
    if off:
        blocks = [Block(name, frozenset(name.split("+"))) for name in off]
        core = Block("core", frozenset(DOMAINS), True)
        (job / "plan.json").write_text(RoutePlan(tuple(DOMAINS), (core, *blocks), {}).to_json())
    if robust:
        attacked = View.full if without else View.removed
        part = without[0] if without else ""
        write_losses(job / "relearn.csv", relearn_losses(rows, attacked, part), RelearnLoss)
    lines = [json.dumps(row) + "\n" for row in history(metrics, rng, steps)]
    (job / "metrics.jsonl").write_text("".join(lines))
    title = " ".join(overrides)
    command = command or f"gr-sweep {title}"
    write_summary(job, config, metrics, intervals, command=command, title=title)
    return job


def write_summary(
    job: Path,
    config: RunConfig,
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    *,
    command: str = "",
    title: str = "",
    text: str = "fcde2b2e",
) -> None:
    summary = {
        "format": 1,
        "job": job.name,
        "sweep": job.parent.name,
        "command": command,
        "title": title,
        "domains": list(config.partition.domains),
        "config": to_plain(config),
        "fingerprints": {"code": "b1946ac9", "config": "2c26b46b", "text": text},
        "environment": {"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "cpus": 2},
        "metrics": metrics,
        "intervals": intervals,
        "started": "2026-03-02T10:12:31+00:00",
        "finished": "2026-03-02T10:31:02+00:00",
    }
    (job / "summary.json").write_text(json.dumps(summary))


def edit(job: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a job's summary.json."""
    path = job / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))


def write_rounds(job: Path, *, rounds: int) -> None:
    """What `procedure=alternate` leaves of its rounds in a job's folder. The first round's experts
    gain 0.15 nats on the full model; further rounds halve that."""
    losses = json.loads((job / "summary.json").read_text())["metrics"]
    tokens = num_steps(TrainConfig()) * 12 * 128
    for number in range(1, rounds + 1):
        labels = labels_of_round(DOMAINS, number, 2)
        later = 0.5 * (rounds - number) - 0.15 / 2 ** (number - 1)  # Earlier ones saw less.
        folder = job / "rounds" / str(number)
        folder.mkdir(parents=True)
        about = {
            "round": number,
            "tokens": tokens * number // rounds,
            "labels": list(labels),
            "modularity": 0.7 + 0.03 * number,
            "parameters_kept": dict.fromkeys(labels, 4.3e6 * (0.4 + 0.4 / number)),
            "served_loss": {d: losses[registry.LOSS_FULL(d)] + later + 0.02 for d in DOMAINS},
            "expert_loss": {d: losses[registry.LOSS_FULL(d)] + later for d in DOMAINS},
            "metrics": {registry.SELECTIVITY(label): 0.4 / number for label in labels},
        }
        (folder / "round.json").write_text(json.dumps(about))


@pytest.fixture(scope="session")
def edges_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four edge choices and a dense run, one seed; for reading only."""
    folder = tmp_path_factory.mktemp("edges") / "edges on real text"
    for edges in ("none", "both", "act", "weight", "dense"):
        write_job(folder, edges=edges, num_documents=8, resamples=50)
    return folder


@pytest.fixture(scope="session")
def read_edges(edges_folder: Path) -> Sweep:
    """The same, read."""
    return read_sweep(edges_folder)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edge choices, methods and all their baselines on two seeds; for reading only."""
    folder = tmp_path_factory.mktemp("study") / "methods and baselines"
    for seed in range(2):
        dense: dict[str, Any] = {"edges": "dense", "shift": 0.02 * seed}
        for job in (
            *({**dense, "method": "dense", "share": 0.5**halvings} for halvings in range(4)),
            *({**dense, "method": "filtered", "without": [d], "robust": True} for d in DOMAINS),
            *({"edges": edges, "robust": True} for edges in ("none", "act", "weight", "both")),
            {"edges": "act", "method": "random"},
            {
                "edges": "weight", "method": "sgtm", "plan": "forget", "forget": ["biology"],
                "foreign_dropout": 1.0, "robust": True,
            },
            {"edges": "none", "method": "demix", "foreign_dropout": 1.0},
            {"edges": "act", "plan": "lattice"},
            *({"edges": "act", "foreign_dropout": dropout} for dropout in (0.25, 1.0)),
        ):  # fmt: skip
            write_job(folder, num_documents=6, seed=seed, **job)
    return folder


@pytest.fixture(scope="session")
def read_study(study: Path) -> Sweep:
    """The same, read."""
    return read_sweep(study)
