"""Folders of sweeps as jobs leave them, with losses like those of the prototype (DESIGN section
10)."""

import dataclasses
import enum
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
    Attribution,
    DomainConfig,
    Edges,
    Method,
    PlanKind,
    ProcedureKind,
    RouteConfig,
    RunConfig,
)
from gr_sweep.domains import ancestors, is_under, labels_of_round, metric_name
from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import (
    DocumentLoss,
    RelearnLoss,
    Text,
    View,
    read_losses,
    write_losses,
    write_relearn,
)
from gr_sweep.metrics.tables import summarize_losses
from gr_sweep.report import read_sweep
from gr_sweep.report.collect import Sweep

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

NEVER_TRAINED = 2.5
"""What a filtered model's loss is above a dense one's on what it never saw, nats."""
TRANSFER = 0.05
"""And on the others."""

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


def mean_losses(
    method: str, edges: str, domains: Sequence[str], without: Sequence[str], share: float
) -> dict[str, float]:
    """L(d) of the full model: the edges' own, of a dense model's where there is no plan."""
    means = {}
    for at, domain in enumerate(domains):
        mean = FULL[edges][at % 3] + 0.35 * math.log2(1 / share)
        if method == "demix":
            mean = FULL["dense"][at % 3] + 0.3
        for part in without:
            # Never trained on it; the others had a little from it.
            mean += NEVER_TRAINED if is_under(domain, part) else TRANSFER
        means[domain] = mean
    return means


def document_losses(
    edges: str,
    domains: Sequence[str],
    rng: np.random.Generator,
    num_documents: int,
    *,
    method: str = "routed",
    plan: str = "peers",
    without: Sequence[str] = (),
    forget: Sequence[str] = (),
    share: float = 1.0,
    shift: float | None = None,
    spurious: float = 0.0,
    calibrate: bool = False,
    separation: float = 1.0,
) -> list[DocumentLoss]:
    """Every view of every document. A document is as hard in every job: baselines pair by it."""
    rows: list[DocumentLoss] = []
    shift = rng.normal(0, 0.03) if shift is None else shift
    noise = {(part, domain): rng.normal(0, 0.03) for part in domains for domain in domains}
    means = mean_losses(method, edges, domains, without, share)
    parts = [] if edges == "dense" else list(forget or domains)
    blocks = [
        subset
        for size in range(1, len(domains))
        for subset in itertools.combinations(domains, size)
        if plan == "lattice" and edges != "dense"
    ]
    for at, domain in enumerate(domains):
        for number in range(num_documents):
            document = hashlib.sha256(f"{domain}{number}".encode()).hexdigest()[:16]
            own = np.random.default_rng(int(document, 16))
            tokens = int(own.integers(80, 512))
            mean = means[domain] + shift + own.normal(0, 0.25) + rng.normal(0, 0.02)

            def row(
                view: View, part: str, loss: float, text: Text = Text.plain,
                domain: str = domain, document: str = document, tokens: int = tokens,
            ) -> None:  # fmt: skip
                rows.append(
                    DocumentLoss(
                        view, part, domain, text, document, loss * tokens, tokens, 4 * tokens
                    )
                )

            row(View.full, "", mean)
            if method == "demix":
                row(View.mixed, "", mean - 0.25)
            if spurious:
                row(View.full, "", mean - 0.1 * spurious, Text.marked)
                row(View.full, "", mean + 0.4 * spurious, Text.swapped)
            for block in blocks:
                cost = 0.6 / len(block) if domain in block else 0.02
                row(View.off, "+".join(block), mean + cost + rng.normal(0, 0.05))
            for part in without if calibrate else ():
                row(View.calibrated_full, part, mean - 0.1)
            for part in parts:
                cost = noise[part, domain] + rng.normal(0, 0.05)
                if part == domain:
                    kept = mean - KEPT_GAIN[edges]
                    cost += separation * OWN_COST[edges][at % 3]
                    if method == "random":
                        kept, cost = mean + 0.4, 0.3 + noise[part, domain]
                    if forget:
                        cost += 1.2
                else:
                    kept = mean + 1.5 * OWN_COST[edges][at % 3] + rng.normal(0, 0.05)
                    if method == "random":
                        cost += 0.3
                row(View.removed, part, mean + cost)
                row(View.kept, part, kept)
                if calibrate and part == domain:
                    row(View.calibrated_full, part, mean - 0.05)
                    row(View.calibrated_removed, part, mean + 0.7 * cost)
    return rows


def relearn_losses(rows: Sequence[DocumentLoss], view: View, without: str) -> list[RelearnLoss]:
    """An attack of 40 steps on each removed part at two learning rates; the second is stronger."""
    found = []
    for row in rows:
        part = row.part if view is View.removed else without
        if row.view is not view or row.text is not Text.plain or row.domain != part:
            continue
        for lr, speed in ((1e-3, 0.01), (3e-3, 0.04)):
            for step in range(0, 41, 10):
                gone = 0.8 * (1 - math.exp(-speed * step))
                loss = row.loss_nats - gone * row.tokens
                found.append(
                    RelearnLoss(
                        view, part, lr, step, row.domain, row.document, loss, row.tokens, row.bytes
                    )
                )
    return found


def history(
    metrics: dict[str, float], domains: Sequence[str], rng: np.random.Generator, steps: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        share = math.exp(-4 * step / steps)
        means = {d: metrics[registry.LOSS_FULL(d)] + (8.3 - 5) * share for d in domains}
        row: dict[str, Any] = {"step": step, "time_s": step * 0.31}
        row |= {registry.TRAIN_LOSS_OF(d): mean + rng.normal(0, 0.12) for d, mean in means.items()}
        row["train/loss"] = sum(row[registry.TRAIN_LOSS_OF(d)] for d in domains) / len(domains)
        row["train/tokens"] = step * 12 * 256
        rows.append(row)
        if step % (steps // 4) == 0:
            rows.append({"step": step} | {registry.EVAL_LOSS(d): mean for d, mean in means.items()})
    return rows


def write_job(
    sweep: Path,
    *,
    edges: str = "both",
    seed: int = 0,
    domains: Sequence[str] = DOMAINS,
    plan: str = "peers",
    foreign_dropout: float = 0.5,
    method: str | None = None,
    without: Sequence[str] = (),
    forget: Sequence[str] = (),
    share: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] | None = None,
    command: str = "gr-sweep -m edges=none,both,act,weight seed=0,1,2",
    num_documents: int = 24,
    resamples: int = 200,
    steps: int = 300,
    shift: float | None = None,
    spurious: float = 0.0,
    robust: bool = False,
    separation: float = 1.0,
    parameters: float = 4.3e6,
) -> Path:
    """A finished job; edges `dense` is a job without a plan.

    Args:
        share: of the tokens, for a shorter dense run.
        settings: dotted names to values, over the config.
        shift: added to all losses; None draws it.
        robust: with calibrated losses and relearning attacks.
        separation: factor on what removal costs the removed domain.
    """
    rng = np.random.default_rng([seed, len(edges), int(100 * foreign_dropout)])
    config = RunConfig(seed=seed)
    config.partition.domains = {domain: DomainConfig() for domain in domains}
    config.route.foreign_dropout = foreign_dropout
    config.plan.kind = PlanKind.none if edges == "dense" else PlanKind(plan)
    config.plan.forget = list(forget)
    config.method.name = Method(method or "routed")
    config.method.without = list(without)
    config.data.spurious = spurious
    if edges != "dense":
        config.edges = Edges(edges)
    elif method is not None:
        # As the effective config of a run without a plan is.
        config.edges, config.route = Edges.none, RouteConfig()
    if share < 1:
        assert config.train.steps is not None
        config.train.steps = round(config.train.steps * share)
    for name, value in (settings or {}).items():
        *path, last = name.split(".")
        node: Any = config
        for key in path:
            node = getattr(node, key)
        setattr(node, last, value)
    if overrides is None:
        overrides = [
            "plan=none" if edges == "dense" else f"edges={edges}",
            *([f"method={method}"] if method else []),
            *([f"method.without=[{','.join(without)}]"] if without else []),
            *([f"plan={plan}"] if plan != "peers" else []),
            *([f"train.steps={config.train.steps}"] if share < 1 else []),
            *(f"{name}={value}" for name, value in (settings or {}).items()),
            f"route.foreign_dropout={foreign_dropout}",
            f"seed={seed}",
        ]
    rows = document_losses(
        edges, domains, rng, num_documents, method=method or "routed", plan=plan,
        without=without, forget=forget, share=share, shift=shift, spurious=spurious,
        calibrate=robust, separation=separation,
    )  # fmt: skip
    metrics, intervals = summarize_losses(rows, domains, seed=seed, resamples=resamples)
    metrics[registry.COST_TOKENS_PER_SECOND.key] = float(rng.normal(9000, 300))
    metrics[registry.COST_TRAIN_SECONDS.key] = 104.2
    metrics[registry.COST_EVAL_SECONDS.key] = 11.8
    metrics[registry.COST_PARAMETERS.key] = parameters
    if edges != "dense":
        metrics |= {registry.PARAMETERS_KEPT(domain): 0.7 * parameters for domain in domains}
    job = sweep / "_".join([*overrides, "1f3a9c"]).replace("/", "-")
    (job / ".hydra").mkdir(parents=True)
    write_losses(job / "document_losses.csv", rows)
    if any(row.view is View.off for row in rows):
        names = dict.fromkeys(row.part for row in rows if row.view is View.off)
        blocks = [{"name": name, "owners": name.split("+"), "is_core": False} for name in names]
        (job / "plan.json").write_text(json.dumps({"blocks": blocks}))
    if robust:
        attacked = View.full if without else View.removed
        part = without[0] if without else ""
        write_relearn(job / "relearn.csv", relearn_losses(rows, attacked, part))
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
        "fingerprints": {"code": "b1946ac9", "config": "2c26b46b", "text": "fcde2b2e"},
        "environment": {"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "cpus": 2},
        "metrics": metrics,
        "intervals": intervals,
        "started": "2026-03-02T10:12:31+00:00",
        "finished": "2026-03-02T10:31:02+00:00",
    }
    (job / "summary.json").write_text(json.dumps(summary))
    return job


def write_rounds(
    job: Path,
    *,
    rounds: int = 3,
    domains: Sequence[str] = DOMAINS,
    layers: int = 4,
    units: int = 768,
    head_groups: int = 0,
    own_gain: float = 0.15,
    tidiness: float = 3.0,
    tokens: int = 100_000,
    parameters: float = 4.3e6,
    without: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """What `procedure=alternate` leaves in a job's folder, on the documents of its table.

    Args:
        head_groups: of attention, that the plan splits too; 0: none.
        own_gain: what the first round's experts alone gain on the full model, nats; halved by each
            further round.
        tidiness: how much more a domain uses its own units than others do.
        without: names of files that each round lacks.
    """
    rng = np.random.default_rng(seed)
    own = [row for row in read_losses(job / "document_losses.csv") if row.view is View.full]
    for number in range(1, rounds + 1):
        labels = labels_of_round(domains, number, 2)
        nodes = list(dict.fromkeys(n for label in labels for n in ancestors(label)))
        owners = {n: [label for label in labels if is_under(label, n)] for n in nodes}
        names = ["core", *nodes]
        split = {"mlp": units} | ({"attn": head_groups} if head_groups else {})
        sizes = {
            kind: {"core": total - sum(_sizes(total // 2, domains, nodes).values())}
            | _sizes(total // 2, domains, nodes)
            for kind, total in split.items()
        }
        folder = job / "rounds" / str(number)
        folder.mkdir(parents=True)
        blocks = [{"name": n, "owners": owners.get(n, list(labels))} for n in names]
        plan = {
            "domains": list(labels),
            "blocks": [block | {"is_core": block["name"] == "core"} for block in blocks],
            "splits": [
                {"layer": at, "kind": kind, "sizes": [sizes[kind][n] for n in names], "order": None}
                for at in range(layers)
                for kind in split
            ],
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        owns = np.array([[label in owners.get(n, labels) for n in names] for label in labels])
        arrays = {}
        for at in range(layers):
            for kind, total in {"attn": 4, **split}.items():
                of_unit = np.zeros(total, dtype=int)
                if kind in sizes:
                    of_unit = np.repeat(np.arange(len(names)), [sizes[kind][n] for n in names])
                scores = rng.lognormal(0, 1, (len(labels), total)) * np.exp(
                    tidiness * owns[:, of_unit] * (of_unit > 0)
                )
                arrays[f"{at}.{kind}"] = scores / scores.sum(axis=1, keepdims=True)
        np.savez_compressed(folder / "scores.npz", domains=np.array(labels), **arrays)
        rows = []
        for row in own:
            below = [label for label in labels if is_under(label, row.domain)]
            label = below[int(row.document, 16) % len(below)] if below else row.domain
            if not below:
                [label] = [label for label in labels if is_under(row.domain, label)]
            # Earlier rounds have seen less.
            late = 0.5 * (rounds - number) * row.tokens
            rows.append(row._replace(domain=label, loss_nats=row.loss_nats + late))
            for node in nodes:
                gain = 0.0 if not is_under(label, node) else own_gain / 2 ** node.count("/")
                for view, change in ((View.kept, -gain), (View.removed, 2 * gain)):
                    loss = row.loss_nats + late + change * row.tokens
                    rows.append(row._replace(view=view, part=node, domain=label, loss_nats=loss))
        write_losses(folder / "document_losses.csv", rows)
        about = {
            "stability": {"mlp": 0.98, "attn": 0.9},
            "modularity_assigned": 0.6 + 0.02 * number + 0.01 * seed,
            "round": number,
            "step": 100 * number,
            "tokens": tokens * number // rounds,
            "labels": list(labels),
            "blocks": [
                block | {"units": {kind: layers * sizes[kind][block["name"]] for kind in split}}
                for block in blocks
            ],
            "parameters_kept": dict.fromkeys(labels, parameters * (0.4 + 0.4 / number)),
            "modularity": 0.7 + 0.03 * number + 0.01 * seed,
            "metrics": {
                f"separability/selectivity/{metric_name(label)}": 0.4 / number + 0.02 * seed
                for label in labels
            },
            "intervals": {},
        }
        (folder / "round.json").write_text(json.dumps(about))
        for name in without:
            (folder / name).unlink()


def _sizes(total: int, domains: Sequence[str], nodes: Sequence[str]) -> dict[str, int]:
    """Units of each node's block: half of its parent's are its children's."""
    found: dict[str, int] = {}
    tops = [node for node in nodes if "/" not in node]
    whole = {node: total // len(tops) for node in tops}
    for node in nodes:
        below = [n for n in nodes if n.rpartition("/")[0] == node]
        half = whole[node] // 2 if below else 0
        whole |= {n: half // len(below) for n in below}
        found[node] = whole[node] - sum(whole[n] for n in below)
    return found


def write_study(
    folder: Path, *, seeds: int = 2, num_documents: int = 8, resamples: int = 50
) -> Path:
    """The edge choices, the control and other methods with all their baselines, by seed."""

    def write(**arguments: Any) -> None:
        write_job(folder, num_documents=num_documents, resamples=resamples, **arguments)

    for seed in range(seeds):
        shift = 0.02 * seed
        for share in (1.0, 0.5, 0.25, 0.125):
            write(edges="dense", method="dense", seed=seed, share=share, shift=shift)
        for part in DOMAINS:
            write(
                edges="dense", method="filtered", without=[part], seed=seed, shift=shift,
                robust=True,
            )  # fmt: skip
        for edges in ("none", "act", "weight", "both"):
            write(edges=edges, seed=seed, robust=True)
        write(edges="act", method="random", seed=seed)
        write(
            edges="weight", method="sgtm", plan="forget", forget=["biology"], seed=seed,
            foreign_dropout=1.0, robust=True,
        )  # fmt: skip
        write(edges="none", method="demix", seed=seed, foreign_dropout=1.0)
        write(edges="act", plan="lattice", seed=seed)
        write(edges="act", seed=seed, foreign_dropout=0.25, separation=0.6)
        write(edges="act", seed=seed, foreign_dropout=1.0, separation=2.5)
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The four edge choices and a dense run, one seed."""
    folder = tmp_path / "edges on real text"
    for edges in ("none", "both", "act", "weight", "dense"):
        write_job(folder, edges=edges)
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Methods with their baselines on two seeds; for reading alone."""
    return write_study(tmp_path_factory.mktemp("study") / "methods and baselines")


@pytest.fixture(scope="session")
def read_study(study: Path) -> Sweep:
    """The same, read."""
    return read_sweep(study)


@pytest.fixture
def make_job() -> Callable[..., Path]:
    """`write_job`, for tests that need other jobs."""
    return write_job


@pytest.fixture
def make_rounds() -> Callable[..., None]:
    """`write_rounds`, for jobs in rounds."""
    return write_rounds


ALTERNATE = {"procedure.name": ProcedureKind.alternate}


@pytest.fixture(scope="session")
def alternating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attributions on two seeds, a run of one round, and dense runs; for reading alone."""
    return write_alternating(tmp_path_factory.mktemp("alternating") / "splitting further")


def write_alternating(folder: Path, *, num_documents: int = 16) -> Path:
    """The sweep of `alternating`."""
    tokens = 400 * 12 * 128
    for seed in range(2):
        shift = 0.02 * seed
        write_job(folder, edges="dense", method="dense", seed=seed, shift=shift,
                  num_documents=num_documents, resamples=20)  # fmt: skip
        for attribution, gain, tidiness, rounds in (
            ("act_grad", 0.25, 3.0, 3), ("act_grad", 0.3, 3.0, 1), ("random", 0.05, 0.5, 3),
        ):  # fmt: skip
            job = write_job(
                folder, edges="act", seed=seed, shift=0.1 + shift, resamples=20,
                num_documents=num_documents,
                settings=ALTERNATE
                | {
                    "procedure.attribution": Attribution(attribution),
                    "procedure.rounds": rounds,
                },
            )  # fmt: skip
            write_rounds(
                job, rounds=rounds, own_gain=gain, tidiness=tidiness, tokens=tokens, seed=seed
            )
    return folder
