"""The procedure `alternate`: each round trains densely, assigns units to labels, and trains as a
mixture of experts; the next round splits every expert further (docs/methods.md, "Procedures").

A stopped run resumes from the newest checkpoint. What comes between two phases follows from the
weights at the end of the first one, and is computed again.
"""

import contextlib
import functools
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gr_sweep.assign.attribution import UnitScores, score_units
from gr_sweep.assign.cluster import document_features, fit_children
from gr_sweep.assign.labels import HELDOUT, TRAIN, RoundLabels
from gr_sweep.assign.units import (
    assign_units,
    modularity_by_chance,
    modularity_of,
    wanted_sizes,
)
from gr_sweep.components import heldout_batches, make_batches
from gr_sweep.config import Attribution, PlanKind, RunConfig
from gr_sweep.data.batches import Batches
from gr_sweep.data.prepare import TokenData
from gr_sweep.data.shards import Shard
from gr_sweep.domains import ancestors, is_under, weights_of_round
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.removal import removal_losses
from gr_sweep.files import whole_file, write_whole
from gr_sweep.jobdir import DOCUMENT_LOSSES, METRICS, PLAN, ROUND, ROUNDS
from gr_sweep.metrics import registry
from gr_sweep.metrics.compare import summarize_losses
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View, read_losses, write_losses
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import reshard
from gr_sweep.planning import Phase, labels_of_rounds, phases_of, plan_before_rounds, plan_of_round
from gr_sweep.routing.divide import origins
from gr_sweep.routing.kinds import Place
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import TAIL_BYTES, read_rows
from gr_sweep.train.cost import kept_parameters
from gr_sweep.train.distributed import Processes
from gr_sweep.train.loop import Trainer
from gr_sweep.train.step import precision_context

logger = logging.getLogger(__name__)

LABELS = "labels.npz"
SCORES = "scores.npz"
ASSIGNMENT = "assignment.json"

Row = TypeVar("Row", DocumentLoss, RelearnLoss)


@dataclass(frozen=True)
class LastRound:
    """A job after its last round."""

    data: TokenData
    """The text by the labels of that round."""
    weights: dict[str, float]
    """Weights of these labels."""
    batches: Batches
    held_out: HeldoutBatches
    rows: list[DocumentLoss]
    """Losses of its evaluation, by these labels."""
    domain_of: Mapping[tuple[str, str], str]
    """Label and hash of each held-out document to its domain of the partition."""

    @property
    def nodes(self) -> set[str]:
        """The partition's domains, and the nodes above them."""
        return {node for domain in self.domain_of.values() for node in ancestors(domain)}

    def of_partition(self, rows: Iterable[Row]) -> list[Row]:
        """The rows by the partition's domains, without labels below them that are removed or kept,
        and those of each document's own expert."""
        nodes = self.nodes
        found: list[Row] = []
        for row in rows:
            domain = self.domain_of[row.domain, row.document]
            if _is_own_expert(row):
                found.append(row._replace(view=View.expert, part="", domain=domain))
            if not row.part or row.part in nodes or row.view is View.off:
                found.append(row._replace(domain=domain))
        return found


@dataclass(frozen=True)
class Rounds:
    """All rounds of a job, in one of its processes. Rank 0 assigns units, and writes files."""

    config: RunConfig
    data: TokenData
    """By the partition's domains, with only the held-out documents that an evaluation reads."""
    routed: RoutedModel
    """The model, with the plan before the rounds."""
    token_losses: TokenLosses
    trainer: Trainer
    folder: Path
    """The job's folder."""
    device: torch.device

    def run(self) -> LastRound:
        """Trains through all phases, from where the run stands."""
        all_labels = labels_of_rounds(self.config)
        state = self.trainer.state
        plan = plan_before_rounds(self.config, self.routed.model.config)
        if self.trainer.plan is not None:
            plan = RoutePlan.from_json(self.trainer.plan)
        labels = RoundLabels.first(self.data, all_labels[0])
        for phase in phases_of(self.config):
            folder = self.folder / ROUNDS / str(phase.round)
            has_begun = phase.start < state.step
            if not phase.is_dense and has_begun:
                labels = RoundLabels.read(folder / LABELS, self.data)
            if phase.stop < state.step:
                continue
            if phase.is_dense or has_begun:
                self._lay(plan, phase)
            else:
                with state.timed("elapsed_s", "assign_s"):
                    labels = self._next_labels(labels, all_labels[phase.round - 1])
                    self._assign(labels, plan, phase, folder)
                plan = self.routed.plan.in_place()
            text = labels.divided(self.data)
            self._write(self.folder / PLAN, plan.to_json() + "\n")
            weights = weights_of_round(self.config.data.weights, self.data.domains, text.domains)
            batches = make_batches(self.config, text, weights)
            if state.step < phase.stop and not phase.is_dense and self._processes.is_main:
                # Left by an attempt with other weights, whose checkpoints are gone.
                (folder / ROUND).unlink(missing_ok=True)
            self.trainer.run(batches, phase.stop)
            if phase.is_dense:
                continue
            held_out = heldout_batches(
                self.config, text, None, device=self.device, processes=self._processes
            )
            with state.timed("elapsed_s", "eval_s"):
                rows = self._evaluate(held_out, labels, phase, folder)
            if self.config.procedure.prune:
                isolated = tuple(frozenset([name]) for name in plan.domains)
                plan = replace(plan, isolated_domains=isolated)
        return LastRound(text, weights, batches, held_out, rows, self._domain_of(labels))

    def _domain_of(self, labels: RoundLabels) -> dict[tuple[str, str], str]:
        return {
            (labels.names[place], f"{int(document):016x}"): domain
            for domain, shard in self.data.heldout.items()
            for place, document in zip(labels.places[HELDOUT, domain], shard.ids, strict=True)
        }

    @property
    def _processes(self) -> Processes:
        return self.trainer.processes

    def _write(self, path: Path, content: str) -> None:
        self._processes.from_main(lambda: write_whole(path, content))

    def _lay(self, plan: RoutePlan, phase: Phase) -> None:
        """Routes the model as the phase trains it."""
        how = asdict(self.config.route) | {"edges": self.config.edges}
        del how["token_bias"]  # refused with rounds
        reshard(self.token_losses)
        self.routed.lay(plan, **{"edges": "none"} if phase.is_dense else how)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return precision_context(self.device, self.config.train.precision)

    # Before a routed phase

    def _next_labels(self, labels: RoundLabels, names: tuple[str, ...]) -> RoundLabels:
        """Labels of the round. Where the domain tree ends, the model's features of documents are
        clustered."""
        if names == labels.names:
            return labels
        below = {label: [n for n in names if is_under(n, label)] for label in labels.names}
        clustered = [
            label
            for label in labels.names
            if len(below[label]) > 1
            and not any(is_under(d, name) for d in self.data.domains for name in below[label])
        ]
        children = {
            place: np.zeros(len(found), dtype=np.int64)
            for place, found in labels.places.items()
            if any(labels.names[label] in clustered for label in np.unique(found))
        }
        shards = {TRAIN: self.data.train, HELDOUT: self.data.heldout}
        for label in clustered:
            place = labels.names.index(label)
            features = {
                (part, domain): self._features(shards[part][domain].subset(chosen), label)
                for (part, domain), found in labels.places.items()
                if len(chosen := np.flatnonzero(found == place))
            }
            train = np.concatenate([f for (part, _), f in features.items() if part == TRAIN])
            num, seed = len(below[label]), self.config.seed
            fit = functools.partial(fit_children, train, num, seed=seed)
            fitted = self._processes.from_main(fit)
            for where, found in features.items():
                children[where][labels.places[where] == place] = fitted.of(found)
        return labels.next(names, children)

    def _features(self, shard: Shard, label: str) -> np.ndarray:
        """Features [documents, D] of a label's documents, from its own expert."""
        self.token_losses.eval()
        with self._precision(), self.routed.keep([label]):
            return document_features(
                lambda ids_MT: self.token_losses.hidden_states(ids_MT.to(self.device)),
                (self._window(shard, index) for index in range(shard.num_documents)),
                batch_sequences=self.config.eval.batch_sequences,
                processes=self._processes,
            )

    def _assign(self, labels: RoundLabels, before: RoutePlan, phase: Phase, folder: Path) -> None:
        """Routes the model by the round's plan, with the units that attribution assigns."""
        config, procedure = self.config, self.config.procedure
        text = labels.divided(self.data)
        plan = unassigned = plan_of_round(config, self.routed.model.config, labels.names, before)
        about: dict[str, Any] = {}
        if procedure.attribution is not Attribution.none:
            blocks = origins(plan, before)
            scores = {
                old: self._assignment_scores(text, before, old, phase.round)
                for old in sorted(set(blocks))
                if blocks.count(old) > 1
            }
            plan = self._processes.from_main(
                lambda: assign_units(
                    unassigned, before, scores, equal_layers=procedure.equal_layers
                )
            )
            about["stability"] = _mean_stability(scores.values())
            if config.plan.kind is PlanKind.lattice:
                about["wanted_units"] = wanted_sizes(plan, scores[0])

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            labels.write(folder / LABELS)
            write_whole(folder / PLAN, plan.to_json() + "\n")

        self._processes.from_main(write)
        self._lay(plan, phase)
        self.routed.reorder_moments(self.trainer.optimizer)
        if plan.splits:
            about["modularity_assigned"] = modularity_of(plan, self._measured_scores(text))
            about["modularity_by_chance"] = modularity_by_chance(plan)
        self._write(folder / ASSIGNMENT, json.dumps(about, indent=1) + "\n")
        names = ", ".join(labels.names)
        logger.info("round %d: %d blocks for %s", phase.round, len(plan.blocks), names)

    def _assignment_scores(
        self, text: TokenData, before: RoutePlan, old: int, number: int
    ) -> UnitScores:
        """Scores for the domains that divide a block, in the network that they have now."""
        block = before.blocks[old]
        domains = [d for d in text.domains if any(is_under(d, owner) for owner in block.owners)]
        kept = list(before.domains) if block.is_core else list(block.owners)
        # Random scores differ between rounds and blocks.
        name = zlib.crc32(f"{number}/{block.name}".encode())
        return self._scores(
            text,
            domains,
            self.config.procedure.attribution,
            purpose="assign",
            seed=(self.config.seed * 1_000_003 + name) % 2**31,
            off=_units_of(before, before.kept_off(kept)),
        )

    def _measured_scores(self, text: TokenData) -> UnitScores:
        """Scores of the network as it is, by one method whatever assigned the units."""
        return self._scores(text, text.domains, Attribution.act_grad, purpose="measure")

    def _scores(
        self,
        text: TokenData,
        domains: Sequence[str],
        method: Attribution,
        *,
        purpose: str,
        **settings: Any,
    ) -> UnitScores:
        with self._precision():
            return score_units(
                self.routed.model,
                self.token_losses,
                {d: self._documents(text.train[d], f"{purpose}/{d}") for d in domains},
                method,
                steps=self.config.procedure.attribution_steps,
                batch_sequences=self.config.eval.batch_sequences,
                processes=self._processes,
                **settings,
            )

    def _documents(self, shard: Shard, purpose: str) -> Iterator[np.ndarray]:
        """Training documents, drawn by the seed and the purpose, as the model reads them."""
        order = np.random.default_rng([self.config.seed, zlib.crc32(purpose.encode())])
        chosen = order.permutation(shard.num_documents)[: self.config.procedure.documents]
        return (self._window(shard, index) for index in chosen.tolist())

    def _window(self, shard: Shard, index: int) -> np.ndarray:
        """The beginning of a document, after the tokens that it is predicted from."""
        own, prefix = shard.document(index).astype(np.int64), self.data.prefix
        if prefix and tuple(own[: len(prefix)]) == prefix:  # a training document
            own = own[len(prefix) :]
        return np.concatenate([self.data.begin, own])[: self.config.train.sequence_length + 1]

    # After a routed phase

    def _evaluate(
        self, held_out: HeldoutBatches, labels: RoundLabels, phase: Phase, folder: Path
    ) -> list[DocumentLoss]:
        """The round's losses by document; writes and logs what is known of the round."""
        if self._processes.from_main((folder / ROUND).exists):
            return read_losses(folder / DOCUMENT_LOSSES)
        with self._precision():
            rows = removal_losses(self.routed, self.token_losses, held_out)
        scores = self._measured_scores(labels.divided(self.data))
        self._processes.from_main(lambda: self._write_round(rows, scores, labels, phase, folder))
        return rows

    def _write_round(
        self,
        rows: list[DocumentLoss],
        scores: UnitScores,
        labels: RoundLabels,
        phase: Phase,
        folder: Path,
    ) -> None:
        step, plan = self.trainer.state.step, self.routed.plan.in_place()
        metrics, intervals = summarize_losses(
            rows, labels.names, seed=self.config.seed, resamples=self.config.eval.bootstrap
        )
        served, experts = self._losses_of_domains(rows, labels)
        modularity = modularity_of(plan, scores) if plan.splits else None
        about = json.loads((folder / ASSIGNMENT).read_text(encoding="utf-8")) | {
            "round": phase.round,
            "step": step,
            "tokens": self.trainer.state.tokens,
            "labels": list(labels.names),
            "blocks": _blocks(plan, labels.names),
            "parameters_kept": kept_parameters(self.routed),
            "modularity": modularity,
            "served_loss": served,
            "expert_loss": experts,
            "metrics": metrics,
            "intervals": intervals,
        }
        write_losses(folder / DOCUMENT_LOSSES, rows)
        with whole_file(folder / SCORES) as file:
            arrays: dict[str, Any] = {"domains": np.array(scores.domains)}
            arrays |= {f"{at}.{kind}": scores.shares(at, kind) for at, kind in scores.halves}
            np.savez_compressed(file, **arrays)
        logged = {registry.LOSS_SERVED(domain): loss for domain, loss in served.items()}
        logged |= {registry.LOSS_EXPERT(domain): loss for domain, loss in experts.items()}
        if modularity is not None:
            logged[registry.MODULARITY.key] = modularity
        last = read_rows(self.folder / METRICS, last_bytes=TAIL_BYTES)[-4:]
        if not any(row[STEP] == step and registry.ROUND.key in row for row in last):
            self.trainer.tracker.log(step, logged | {registry.ROUND.key: float(phase.round)})
        write_whole(folder / ROUND, json.dumps(about, indent=1) + "\n")

    def _losses_of_domains(
        self, rows: list[DocumentLoss], labels: RoundLabels
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Losses of each domain of the partition in nats per token: of the served model, and of
        each document's own expert alone."""
        domain_of = self._domain_of(labels)

        def by_domain(rows: Sequence[DocumentLoss]) -> dict[str, float]:
            found = {}
            for domain in self.data.domains:
                of = [row for row in rows if domain_of[row.domain, row.document] == domain]
                if of:
                    found[domain] = sum(r.loss_nats for r in of) / sum(r.tokens for r in of)
            return found

        served = [row for row in rows if row.view is View.served]
        return by_domain(served), by_domain([*filter(_is_own_expert, rows)])


def _is_own_expert(row: DocumentLoss | RelearnLoss) -> bool:
    return row.view is View.kept and row.part == row.domain


def _blocks(plan: RoutePlan, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Name, owners and units by kind of each block, for round.json."""
    kinds = sorted({kind for _, kind in plan.splits})
    return [
        {
            "name": block.name,
            "owners": [name for name in labels if name in block.owners],
            "units": {
                kind: sum(split.sizes[index] for (_, k), split in plan.splits.items() if k == kind)
                for kind in kinds
            },
        }
        for index, block in enumerate(plan.blocks)
    ]


def _units_of(plan: RoutePlan, blocks: tuple[int, ...]) -> dict[Place, Tensor]:
    """For each layer and kind that the plan splits, a mask of the units in these blocks."""
    found = {}
    for place, split in plan.splits.items():
        block_of_unit = np.repeat(np.arange(len(split.sizes)), split.sizes)
        found[place] = torch.from_numpy(np.isin(block_of_unit, blocks))
    return found


def _mean_stability(scores: Iterable[UnitScores]) -> dict[str, float]:
    by_block = [of_block.stability() for of_block in scores]
    kinds = dict.fromkeys(kind for found in by_block for kind in found)
    return {
        kind: float(np.mean([found[kind] for found in by_block if kind in found])) for kind in kinds
    }
