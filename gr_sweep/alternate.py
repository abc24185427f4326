"""The procedure `alternate`: rounds of dense training, assignment, and training as a mixture of
experts, each of which splits every expert further (DESIGN: procedures).

Wires assignment, training and evaluation together, as `job` does for a run of one phase. A run that
was stopped anywhere is taken up from the newest checkpoint: what comes between two phases follows
from the weights that the first one ended with, and is computed again.
"""

import contextlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gr_sweep.assign.cluster import document_features, fit_children
from gr_sweep.assign.labels import HELDOUT, TRAIN, RoundLabels
from gr_sweep.assign.scores import UnitScores, score_units
from gr_sweep.assign.units import (
    assign_units,
    modularity_by_chance,
    modularity_of,
    wanted_sizes,
)
from gr_sweep.config import Attribution, PlanKind, RunConfig
from gr_sweep.data.batches import Batches
from gr_sweep.data.prepare import TokenData
from gr_sweep.data.shards import Shard
from gr_sweep.domains import ancestors, is_under, weights_of_round
from gr_sweep.errors import DataError
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.removal import removal_losses
from gr_sweep.files import whole_file, write_whole
from gr_sweep.jobdir import DOCUMENT_LOSSES, METRICS, PLAN
from gr_sweep.layout import Phase, labels_of_rounds, phases_of, plan_of_round
from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View, read_losses, write_losses
from gr_sweep.metrics.tables import summarize_losses
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.divide import origins
from gr_sweep.routing.plan import Place, RoutePlan
from gr_sweep.tracking.base import STEP, Tracker
from gr_sweep.tracking.jsonl import TAIL_BYTES, read_rows
from gr_sweep.train.cost import kept_parameters
from gr_sweep.train.loop import Training

logger = logging.getLogger(__name__)

ROUNDS = "rounds"
"""Folder of a job that has one for each round."""
ROUND = "round.json"
LABELS = "labels.npz"
SCORES = "scores.npz"

Row = TypeVar("Row", DocumentLoss, RelearnLoss)


@dataclass(frozen=True)
class LastRound:
    """Where a run stands after its last round."""

    data: TokenData
    """The text by the labels of that round."""
    batches: Batches
    held_out: HeldoutBatches
    rows: list[DocumentLoss]
    """Of its evaluation, by its labels."""
    domain_of: Mapping[tuple[str, str], str]
    """Label and hash of each held-out document to its domain of the partition."""

    @property
    def nodes(self) -> set[str]:
        """The partition's domains, and the nodes above them."""
        return {node for domain in self.domain_of.values() for node in ancestors(domain)}

    def of_partition(self, rows: Iterable[Row]) -> list[Row]:
        """Rows by the partition's domains, as a run of one phase has them, and those of each
        document's own expert; without what is removed or kept below a domain."""
        nodes = self.nodes
        found: list[Row] = []
        for row in rows:
            domain = self.domain_of[row.domain, row.document]
            if row.view is View.kept and row.part == row.domain:
                found.append(row._replace(view=View.expert, part="", domain=domain))
            if not row.part or row.part in nodes or row.view is View.off:
                found.append(row._replace(domain=domain))
        return found


@dataclass(frozen=True)
class Alternation:
    """A run in rounds; `run` is all of it."""

    config: RunConfig
    data: TokenData
    """By the partition's domains; of the held-out documents those alone that are read."""
    routed: RoutedModel
    """A plain model, that no plan is laid over."""
    token_losses: TokenLosses
    training: Training
    folder: Path
    """The job's."""
    tracker: Tracker
    device: torch.device
    make_batches: Callable[[TokenData, Mapping[str, float]], Batches]
    """Training rows of a round's text, with the weights of its labels."""
    make_held_out: Callable[[TokenData], HeldoutBatches]
    """All held-out documents of a round's text."""
    train_to: Callable[[Batches, int], None]
    """Trains until a step."""
    route: Mapping[str, Any]
    """Foreign dropout and route weights of the routed phases, as `route_model` takes them."""
    computing: Callable[[], contextlib.AbstractContextManager[Any]]
    """Inside, products are in the type that evaluation has."""

    def run(self) -> LastRound:
        """Trains through all phases, from where the run stands.

        Raises:
            GrSweepError: as the parts do.
        """
        all_labels = labels_of_rounds(self.config)
        phases = phases_of(self.config)
        state = self.training.state
        self._check_enough(all_labels[-1])
        plan = RoutePlan.none(domains=all_labels[0])
        if self.training.plan is not None:
            plan = RoutePlan.from_json(self.training.plan)
        labels = RoundLabels.first(self.data, all_labels[0])
        for phase in phases:
            folder = self.folder / ROUNDS / str(phase.round)
            is_begun = phase.start < state.step
            if not phase.is_dense and is_begun:
                labels = RoundLabels.read(folder / LABELS, self.data)
            if phase.stop < state.step:
                continue
            if phase.is_dense:
                self.routed.lay(plan, "none")
            elif is_begun:
                self._lay(plan)
            else:
                with self._timed("assign_s"):
                    labels = self._next_labels(labels, all_labels[phase.round - 1], phase)
                    self._assign(labels, plan, phase, folder)
                plan = self.routed.plan.in_place()
            text = labels.divided(self.data)
            write_whole(self.folder / PLAN, plan.to_json() + "\n")
            batches = self._batches(text)
            if state.step < phase.stop and not phase.is_dense:
                # Of other weights: an attempt whose checkpoints are gone.
                (folder / ROUND).unlink(missing_ok=True)
            self.train_to(batches, phase.stop)
            if phase.is_dense:
                continue
            held_out = self.make_held_out(text)
            with self._timed("eval_s"):
                rows = self._evaluated(held_out, labels, phase, folder)
            if self.config.procedure.prune:
                plan = replace(
                    plan, isolated_domains=tuple(frozenset([name]) for name in plan.domains)
                )
        return LastRound(text, batches, held_out, rows, self._domain_of(labels))

    def _domain_of(self, labels: RoundLabels) -> dict[tuple[str, str], str]:
        return {
            (labels.names[place], f"{int(document):016x}"): domain
            for domain, shard in self.data.heldout.items()
            for place, document in zip(labels.places[HELDOUT, domain], shard.ids, strict=True)
        }

    def _check_enough(self, leaves: Sequence[str]) -> None:
        """Raises DataError where a domain's text cannot be divided over its leaves."""
        for domain, shard in self.data.train.items():
            own = [leaf for leaf in leaves if is_under(leaf, domain)]
            if len(own) > max(1, shard.num_documents):
                raise DataError(
                    f"{domain} has {shard.num_documents} training documents, too few to be divided "
                    f"into {len(own)} by procedure.rounds and procedure.children; add text, or "
                    "have fewer of these"
                )

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Time inside counts as elapsed, and as the state's `name`."""
        state, begin = self.training.state, time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        state.elapsed_s += seconds
        setattr(state, name, getattr(state, name) + seconds)

    def _batches(self, text: TokenData) -> Batches:
        weights = weights_of_round(self.config.data.weights, self.data.domains, text.domains)
        return self.make_batches(text, weights)

    def _lay(self, plan: RoutePlan) -> None:
        self.routed.lay(plan, self.config.edges, **self.route)

    # What comes before a routed phase

    def _next_labels(
        self, labels: RoundLabels, names: tuple[str, ...], phase: Phase
    ) -> RoundLabels:
        """Of this round; where the domain tree ends documents are clustered by the model itself."""
        if names == labels.names:
            return labels
        divided = []
        for label in labels.names:
            below = [name for name in names if is_under(name, label)]
            in_tree = any(is_under(d, name) for d in self.data.domains for name in below)
            if len(below) > 1 and not in_tree:
                divided.append(label)
        children = {
            place: np.zeros(len(found), dtype=np.int64)
            for place, found in labels.places.items()
            if any(labels.names[label] in divided for label in np.unique(found))
        }
        parts = {TRAIN: self.data.train, HELDOUT: self.data.heldout}
        for label in divided:
            below = [name for name in names if is_under(name, label)]
            place = labels.names.index(label)
            features = {
                (part, domain): self._features(parts[part][domain].subset(chosen), label)
                for (part, domain), found in labels.places.items()
                if len(chosen := np.flatnonzero(found == place))
            }
            train = [found for (part, _), found in features.items() if part == TRAIN]
            fitted = fit_children(np.concatenate(train), len(below), seed=self.config.seed)
            for where, found in features.items():
                children[where][labels.places[where] == place] = fitted.of(found)
            logger.info("round %d: %s is divided into %s", phase.round, label, ", ".join(below))
        return labels.next(names, children)

    def _features(self, shard: Shard, label: str) -> np.ndarray:
        """[documents, D] of documents of a label, from the network of its own expert."""

        def hidden(ids_MT: Tensor) -> Tensor:
            model: Any = self.token_losses.model
            found: Tensor = model.base_model(input_ids=ids_MT, use_cache=False).last_hidden_state
            return found

        self.token_losses.eval()
        with self.computing(), self.routed.keep([label]):
            return document_features(
                hidden,
                (self._window(shard, index) for index in range(shard.num_documents)),
                batch_sequences=self.config.eval.batch_sequences,
                device=self.device,
            )

    def _assign(self, labels: RoundLabels, before: RoutePlan, phase: Phase, folder: Path) -> None:
        """Lays the round's plan over the model, with the units that attribution gives it."""
        config = self.config
        text = labels.divided(self.data)
        shape = self.routed.model.config
        plan = plan_of_round(config, shape, labels.names, before)
        about: dict[str, Any] = {}
        if config.procedure.attribution is not Attribution.none:
            block_origins = origins(plan, before)
            method = config.procedure.attribution
            scores = {
                old: self._scores(text, before, old, method, phase.round)
                for old in sorted(set(block_origins))
                if block_origins.count(old) > 1
            }
            plan = assign_units(plan, before, scores, equal_layers=config.procedure.equal_layers)
            about["stability"] = _mean_stability(scores.values())
            if config.plan.kind is PlanKind.lattice:
                about["wanted_units"] = wanted_sizes(plan, scores[0])
        folder.mkdir(parents=True, exist_ok=True)
        labels.write(folder / LABELS)
        write_whole(folder / PLAN, plan.to_json() + "\n")
        self._lay(plan)
        self.routed.reorder_moments(self.training.optimizer)
        if plan.splits:
            measured = self._measured(text)
            about["modularity_assigned"] = modularity_of(plan, measured)
            about["modularity_by_chance"] = modularity_by_chance(plan)
        write_whole(folder / "assignment.json", json.dumps(about, indent=1) + "\n")
        logger.info(
            "round %d: %d blocks for %s%s",
            phase.round,
            len(plan.blocks),
            ", ".join(labels.names),
            "".join(f", {name} {value}" for name, value in about.items() if name != "wanted_units"),
        )

    def _scores(
        self, text: TokenData, before: RoutePlan, old: int, method: Attribution, number: int
    ) -> UnitScores:
        """Scores for the domains that divide a block, in the network that they have now."""
        owners = before.blocks[old].owners
        domains = [d for d in text.domains if any(is_under(d, owner) for owner in owners)]
        kept = list(owners) if not before.blocks[old].is_core else list(before.domains)
        return self._scored(
            text,
            domains,
            method,
            # Another draw in each round and block, where it is random.
            seed=_mixed(self.config.seed, f"{number}/{before.blocks[old].name}"),
            off=_off_units(before, before.kept_off(kept)),
        )

    def _measured(self, text: TokenData) -> UnitScores:
        """Scores of the network as it stands, whatever assigned its units: for figures and
        modularity, so that they compare."""
        return self._scored(text, text.domains, Attribution.act_grad, purpose="measure")

    def _scored(
        self,
        text: TokenData,
        domains: Sequence[str],
        method: Attribution,
        *,
        purpose: str = "assign",
        **settings: Any,
    ) -> UnitScores:
        with self.computing():
            return score_units(
                self.routed.model,
                self.token_losses,
                {d: self._documents(text.train[d], f"{purpose}/{d}") for d in domains},
                method,
                steps=self.config.procedure.attribution_steps,
                batch_sequences=self.config.eval.batch_sequences,
                device=self.device,
                **settings,
            )

    def _documents(self, shard: Shard, purpose: str) -> Iterator[np.ndarray]:
        """Training documents, drawn by the seed and the purpose, as the model reads them."""
        order = np.random.default_rng([self.config.seed, zlib.crc32(purpose.encode())])
        chosen = order.permutation(shard.num_documents)[: self.config.procedure.documents]
        for index in chosen.tolist():
            yield self._window(shard, index)

    def _window(self, shard: Shard, index: int) -> np.ndarray:
        """The beginning of a document, after the end-of-text token that it is predicted from."""
        own = shard.document(index)[: self.config.train.sequence_length].astype(np.int64)
        return np.concatenate([[self.data.eot_id], own])

    # What comes after a routed phase

    def _evaluated(
        self, held_out: HeldoutBatches, labels: RoundLabels, phase: Phase, folder: Path
    ) -> list[DocumentLoss]:
        """The round's losses by document, written beside what is known of it."""
        if (folder / ROUND).exists():
            return read_losses(folder / DOCUMENT_LOSSES)
        state, plan = self.training.state, self.routed.plan.in_place()
        with self.computing():
            rows = removal_losses(self.routed, self.token_losses, held_out)
        metrics, intervals = summarize_losses(
            rows, labels.names, seed=self.config.seed, resamples=self.config.eval.bootstrap
        )
        scores = self._measured(labels.divided(self.data))
        about = json.loads((folder / "assignment.json").read_text(encoding="utf-8"))
        experts = self._expert_losses(rows, labels)
        about |= {
            "round": phase.round,
            "step": state.step,
            "tokens": state.tokens,
            "labels": list(labels.names),
            "blocks": [
                {
                    "name": block.name,
                    "owners": [name for name in labels.names if name in block.owners],
                    "units": {
                        kind: sum(s.sizes[index] for (_, k), s in plan.splits.items() if k == kind)
                        for kind in sorted({kind for _, kind in plan.splits})
                    },
                }
                for index, block in enumerate(plan.blocks)
            ],
            "parameters_kept": kept_parameters(self.routed),
            "modularity": modularity_of(plan, scores) if plan.splits else None,
            "expert_loss": experts,
            "metrics": metrics,
            "intervals": intervals,
        }
        write_losses(folder / DOCUMENT_LOSSES, rows)
        with whole_file(folder / SCORES) as file:
            arrays: dict[str, Any] = {"domains": np.array(scores.domains)}
            for layer, kind in scores.halves:
                arrays[f"{layer}.{kind}"] = scores.shares(layer, kind).numpy()
            np.savez_compressed(file, **arrays)
        logged = {registry.LOSS_EXPERT(domain): loss for domain, loss in experts.items()}
        if about["modularity"] is not None:
            logged[registry.MODULARITY.key] = about["modularity"]
        if not self._is_logged(state.step):
            self.tracker.log(state.step, logged | {registry.ROUND.key: float(phase.round)})
        # Last: a round that has one is done.
        write_whole(folder / ROUND, json.dumps(about, indent=1) + "\n")
        return rows

    def _expert_losses(self, rows: list[DocumentLoss], labels: RoundLabels) -> dict[str, float]:
        """Loss of each of the partition's domains, every document read by its own label's expert
        alone, in nats per token."""
        domain_of = self._domain_of(labels)
        own: dict[str, list[DocumentLoss]] = {}
        for row in rows:
            if row.view is View.kept and row.part == row.domain:
                own.setdefault(domain_of[row.domain, row.document], []).append(row)
        return {
            domain: sum(row.loss_nats for row in own[domain]) / sum(r.tokens for r in own[domain])
            for domain in self.data.domains
            if domain in own
        }

    def _is_logged(self, step: int) -> bool:
        """Whether an attempt that was stopped since has logged the round that ends here."""
        last = read_rows(self.folder / METRICS, last_bytes=TAIL_BYTES)[-4:]
        return any(row[STEP] == step and registry.ROUND.key in row for row in last)


def _off_units(plan: RoutePlan, off: tuple[int, ...]) -> dict[Place, Tensor]:
    """Of each layer and kind that the plan splits, which units the blocks hold."""
    found = {}
    for place, split in plan.splits.items():
        block_of_unit = np.repeat(np.arange(len(split.sizes)), split.sizes)
        found[place] = torch.from_numpy(np.isin(block_of_unit, off))
    return found


def _mean_stability(scores: Any) -> dict[str, float]:
    by_kind: dict[str, list[float]] = {}
    for of_block in scores:
        for kind, value in of_block.stability().items():
            by_kind.setdefault(kind, []).append(value)
    return {kind: float(np.mean(values)) for kind, values in by_kind.items()}


def _mixed(seed: int, name: str) -> int:
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31
