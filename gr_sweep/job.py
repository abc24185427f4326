"""One job, from its config to summary.json: prepare, build, train, evaluate, summarise.

The one place that connects the parts of the package.
"""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gr_sweep import jobdir
from gr_sweep.branch import begins_silent, begun_phases, enter, silence_blocks
from gr_sweep.components import (
    check_model,
    check_processes,
    defer,
    environment,
    heldout_batches,
    heldout_read,
    make_batches,
    make_recovery,
    make_routed,
    make_sampler,
    make_tasks,
    save_model_files,
    token_cuts,
    training_text,
)
from gr_sweep.config import ProcedureKind, Resume, RunConfig, num_steps, to_plain
from gr_sweep.data.batches import Batches
from gr_sweep.data.markers import swapped_markers
from gr_sweep.data.prepare import check_held_out, prepare_data, text_fingerprint
from gr_sweep.errors import DataError
from gr_sweep.eval.removal import removal_losses
from gr_sweep.eval.robustness import robustness_losses
from gr_sweep.files import content_digest, write_whole
from gr_sweep.fingerprint import Identity, identity_of
from gr_sweep.metrics import registry
from gr_sweep.metrics.compare import summarize_losses
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, Text, write_losses
from gr_sweep.model.deferred import Deferred
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import keep_bfloat16
from gr_sweep.planning import makes_plan_in_training, phases_of
from gr_sweep.tracking import Tracker, make_tracker
from gr_sweep.train.checkpoint import Checkpoints, report_full_disk
from gr_sweep.train.cost import cost_metrics, train_flops_per_token
from gr_sweep.train.distributed import Processes, connect
from gr_sweep.train.loop import Trainer, TrainState, foreign_dropout
from gr_sweep.train.memory import report_out_of_memory
from gr_sweep.train.signals import StopSignals
from gr_sweep.train.step import is_bfloat16, precision_context, shard

if TYPE_CHECKING:
    from gr_sweep.alternate import LastRound

logger = logging.getLogger(__name__)


def run_job(
    config: RunConfig,
    folder: Path,
    *,
    sweep: str,
    overrides: list[str],
    command: str,
    title: str = "",
    is_baseline: bool = False,
) -> None:
    """Runs a job to its end, or resumes it; returns at once if its folder has a summary of equal
    identity (`fingerprint.Identity`).

    Where the folder holds another job, `resume=force` trains on from its checkpoints, and the
    summary lists what differs. For `resume=fresh` the command line has moved the folder away.

    Args:
        config: validated and resolved.
        sweep: name of the sweep, the W&B group.
        overrides: what was typed for this job, and `command` a command line that runs it.
        is_baseline: whether the results of a job of equal identity may be copied from a sweep next
            to this one.

    Raises:
        GrSweepError: the folder holds another job, or another error that the user can fix.
        Stopped: a signal asked the job to stop.
    """
    processes = connect()
    signals = StopSignals()
    with signals.listening(), contextlib.ExitStack() as stack:
        text = processes.main_first(
            lambda: text_fingerprint(config.data, config.partition, config.model)
        )

        def begin() -> tuple[Identity, jobdir.Record] | None:
            """Locks the folder, on rank 0 for all processes; None if the job is done."""
            identity = identity_of(config, text)
            if jobdir.is_done(folder, identity):
                return None
            changes = jobdir.differences(folder, identity)
            if changes and config.resume is not Resume.force:
                raise jobdir.different_job(folder, changes)
            record = stack.enter_context(jobdir.lock_job_dir(folder, title))
            if jobdir.is_done(folder, identity):  # another process may just have finished it
                return None
            jobdir.begin_job(folder, record, identity, num_steps(config.train))
            return identity, record

        if (begun := processes.from_main(begin)) is None:
            return
        identity, record = begun
        check_processes(config, processes.rank, processes.world_size)
        stack.enter_context(report_full_disk(folder))
        stack.enter_context(report_out_of_memory())
        device = stack.enter_context(processes.joined(config.train.device))
        if is_baseline and processes.from_main(
            lambda: _copy_results(folder, identity, {"sweep": sweep, "title": title})
        ):
            return
        job = Job(config, folder, processes, device, signals, identity, record)
        job.prepare()
        job.build(sweep, title)
        with job.tracker:
            job.train()
            job.evaluate()
            names = {"sweep": sweep, "title": title, "command": command, "overrides": overrides}
            job.summarise(names)


def _copy_results(folder: Path, identity: Identity, names: Mapping[str, str]) -> bool:
    """Copies the results of a finished job of equal identity from another sweep next to this one;
    returns whether there is such a job. `names` replace fields of its summary."""
    # By default the folder of a job ends in these digits.
    digits = identity.fingerprints["config"][:8]
    for path in sorted(folder.parent.parent.glob(f"*/*-{digits}/{jobdir.SUMMARY}")):
        source = path.parent
        summary = jobdir.read_finished(source) or {}
        # A job with changes has trained some steps with another identity.
        if summary.get("fingerprints") != identity.fingerprints or summary.get("changes"):
            continue
        try:
            jobdir.check_files(source, summary.get("files", {}))
        except (OSError, DataError):
            continue
        for name in (jobdir.METRICS, *jobdir.RESULTS):
            if (source / name).exists():
                write_whole(folder / name, (source / name).read_text(encoding="utf-8"))
            else:
                (folder / name).unlink(missing_ok=True)
        origin = f"{source.parent.name}/{source.name}"
        summary |= {"job": folder.name, **names, "taken_from": origin}
        jobdir.write_summary(folder / jobdir.SUMMARY, summary)
        logger.info("%s has finished the same job: its results are copied", origin)
        return True
    return False


@dataclass
class Job:
    """One job, in one of its processes; rank 0 alone writes files, logs and tracks.

    The phases are called in this order, by all processes; each sets what the next ones read.
    """

    config: RunConfig
    folder: Path
    processes: Processes
    device: torch.device
    signals: StopSignals
    identity: Identity
    record: jobdir.Record
    """What the job's checkpoints began with, and what has changed since."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def prepare(self) -> None:
        """Tokenises the text, or finds it in the cache."""
        config = self.config
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # an earlier job of this process
        self.processes.main_first(lambda: check_model(config.model))
        self.data = self.processes.main_first(
            lambda: prepare_data(config.data, config.partition, config.model)
        )
        check_held_out(self.data, config.eval.min_documents, config.data.kind)
        if self.data.fingerprint != self.identity.fingerprints["text"]:
            raise DataError("the text has changed while the job began; start it again")
        began_with = self.record.fingerprints
        self.checkpoints = Checkpoints(
            self.folder / jobdir.CHECKPOINTS,
            keep=config.train.keep_checkpoints,
            fingerprint=f"{began_with['config']}:{began_with['text']}",
            processes=self.processes,
        )

    def build(self, sweep: str, title: str) -> None:
        """Makes the batches, the routed model on its device, the held-out text and the tracker."""
        config, data, processes = self.config, self.data, self.processes

        # A checkpoint may have to be downloaded.
        share = processes.together if config.model.path is None else processes.main_first

        def make_parts() -> tuple[Batches, RoutedModel, Deferred | None]:
            deferred = defer(config, data) if processes.are_several else None
            return make_batches(config, data), make_routed(config, data, deferred), deferred

        self.batches, self.routed, deferred = share(make_parts)
        self.trunk_flops = 0.0 if makes_plan_in_training(config) else self._train_flops()
        self.token_losses = TokenLosses(self.routed)
        model = self.routed.model
        if is_bfloat16(self.device, config.train.precision):
            read = deferred.is_bfloat16 if deferred else None
            processes.together(lambda: keep_bfloat16(model, read))
        if processes.are_several:
            shard(self.token_losses, config.train, self.device)
            if deferred is not None:
                to = (self.routed, self.token_losses, self.device)
                processes.together(lambda: deferred.fill(*to))
                if begins_silent(config):
                    silence_blocks(self.routed)
        else:
            model.to(self.device)
        self.routed.token_cuts = token_cuts(config, self.batches, data.vocab_size, self.device)
        self.read = functools.partial(
            heldout_batches, config, data, device=self.device, processes=processes
        )
        self.held_out = self.read(config.eval.tokens)
        self.curve = self.read(min(config.eval.curve_tokens, config.eval.tokens))
        self.sampler = None
        if config.eval.samples:
            self.sampler = make_sampler(config, data, self.routed, self.token_losses)
        self.run_tasks = processes.main_first(
            lambda: make_tasks(config, data, self.routed, self.token_losses)
        )
        if processes.is_main:
            save_model_files(self.folder, model, data.tokenizer_dir)
            if not makes_plan_in_training(config):
                write_whole(self.folder / jobdir.PLAN, self.routed.plan.to_json() + "\n")
        make = functools.partial(
            make_tracker,
            config.tracking,
            folder=self.folder,
            job=title or self.folder.name,
            sweep=sweep,
            run_config=to_plain(config),
        )
        self.tracker = processes.together(make if processes.is_main else Tracker)

    def train(self) -> None:
        """Trains to the end, from the newest checkpoint if there is one."""
        config = self.config
        self.recovery_steps = 0
        if self.routed.plan.removable():
            self.recovery_steps = round(config.method.recovery * num_steps(config.train))
        self.train_config = config.train
        if self.recovery_steps:
            # Recovery is a part of the run: no method trains longer than another.
            steps = num_steps(config.train) - self.recovery_steps
            self.train_config = replace(config.train, steps=steps, tokens=None)
        self.full_rows: list[DocumentLoss] = []
        phases = phases_of(config)
        trainer = Trainer(
            routed=self.routed,
            token_losses=self.token_losses,
            config=self.train_config,
            seed=config.seed,
            eval_every=config.eval.every,
            evaluate=self._evaluate_curve,
            tracker=self.tracker,
            checkpoints=self.checkpoints,
            device=self.device,
            processes=self.processes,
            signals=self.signals,
            phases=[phase.stop - phase.start for phase in phases] if len(phases) > 1 else None,
            rewarm=config.procedure.rewarm,
        )
        trainer.start(
            None if makes_plan_in_training(config) else self.routed.plan,
            functools.partial(enter, config, self.routed),
        )
        self.last: LastRound | None = None
        match config.procedure.name:
            case ProcedureKind.fixed:
                trainer.run(self.batches)
            case ProcedureKind.alternate:
                # Imports scipy, which takes a second: most jobs have no rounds.
                from gr_sweep.alternate import Rounds

                self.last = Rounds(
                    config=config,
                    data=heldout_read(config, self.data),
                    routed=self.routed,
                    token_losses=self.token_losses,
                    trainer=trainer,
                    folder=self.folder,
                    device=self.device,
                ).run()
                self.batches, self.held_out = self.last.batches, self.last.held_out
            case ProcedureKind.branch:
                for phase in begun_phases(config, self.routed, trainer):
                    self.batches = make_batches(config, self.data, phase=phase)
                    trainer.run(self.batches, phase.stop)
        self.state: TrainState = trainer.state
        trainer.optimizer.state.clear()  # moments are twice as large as the parameters

    def evaluate(self) -> None:
        """Reads held-out text in every view, with markers and after attacks; writes samples."""
        config, begin = self.config, time.perf_counter()
        recover = make_recovery(
            config, self.routed, self.token_losses, self.batches, num_steps=self.recovery_steps
        )
        losses = functools.partial(removal_losses, self.routed, self.token_losses)
        data, weights, parts = self.data, config.data.weights, None
        if self.last is not None:
            data, weights, parts = self.last.data, self.last.weights, self.last.nodes
        with precision_context(self.device, config.train.precision):
            if self.last is not None:
                rows = self.last.rows
            else:
                # Without rows of the full model if the job was stopped after its last step.
                rows = losses(self.held_out, self.full_rows or None, recover)
            if markers := self.data.markers:
                swapped = swapped_markers(markers)
                for text, of_domain in ((Text.marked, markers), (Text.swapped, swapped)):
                    marked = self.read(config.eval.tokens, text=text, markers=of_domain)
                    rows += losses(marked, None, recover)
            more_rows, relearned = robustness_losses(
                self.routed,
                self.token_losses,
                self.held_out,
                training_text(config, data, weights),
                config.eval,
                without=config.method.without,
                parts=parts,
                recover=recover,
                lr=config.train.lr,
            )
            rows += more_rows
            self.samples = None if self.sampler is None else self.sampler.sample(parts, recover)
            self.of_tasks = self.run_tasks(recover)
        if self.last is not None:
            rows, relearned = self.last.of_partition(rows), self.last.of_partition(relearned)
        self.rows, self.relearned = rows, relearned
        self.state.eval_s += time.perf_counter() - begin

    def summarise(self, names: Mapping[str, Any]) -> None:
        """Writes the tables and the summary; `names` are more of its fields."""
        if not self.processes.is_main:
            self.tracker.finish({})
            return
        for name in (jobdir.SAMPLES, jobdir.RELEARN):
            (self.folder / name).unlink(missing_ok=True)  # of an earlier attempt
        if self.samples is not None:
            write_whole(self.folder / jobdir.SAMPLES, json.dumps(self.samples, indent=1) + "\n")
        write_losses(self.folder / jobdir.DOCUMENT_LOSSES, self.rows)
        if self.relearned:
            write_losses(self.folder / jobdir.RELEARN, self.relearned, RelearnLoss)
        blocks = [block for block in self.routed.plan.blocks if not block.is_core]
        metrics, intervals = summarize_losses(
            self.rows,
            self.data.domains,
            seed=self.config.seed,
            resamples=self.config.eval.bootstrap,
            blocks={block.name: block.owners for block in blocks},
        )
        recovery_tokens = self.recovery_steps * self.batches.tokens_per_step
        tokens = {registry.COST_TRAIN_TOKENS.key: self.state.tokens + recovery_tokens}
        summary = {
            "format": 1,
            "job": self.folder.name,
            **names,
            "domains": list(self.data.domains),
            "config": to_plain(self.config),
            "fingerprints": self.identity.fingerprints,
            # Not empty if resume=force went on from a job of another identity.
            "changes": self.record.changes,
            "files": {
                name: content_digest(self.folder / name)
                for name in jobdir.RESULTS
                if (self.folder / name).exists()
            },
            "environment": environment(
                self.device, self.processes.world_size, self.config.train.precision
            ),
            "metrics": metrics | self.of_tasks[0] | self._costs() | tokens,
            "intervals": intervals | self.of_tasks[1],
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # W&B first: nobody resumes a job with a summary to finish its W&B run.
        self.tracker.finish(summary)
        jobdir.write_summary(self.folder / jobdir.SUMMARY, summary)

    # Parts of the phases

    def _evaluate_curve(self, is_last: bool) -> dict[str, float]:
        """Losses of the documents of the curve; at the end picked from those of all documents,
        which the matrices read too."""
        self.routed.model.eval()
        with precision_context(self.device, self.config.train.precision):
            rows = (self.held_out if is_last else self.curve).losses(self.token_losses)
        if is_last:
            self.full_rows = rows
            rows = [row for row in rows if (row.domain, row.document) in self.curve.documents]
        domains = self.data.domains
        metrics, _ = summarize_losses(rows, domains, seed=self.config.seed, resamples=0)
        found = {domain: metrics.get(registry.LOSS_FULL(domain)) for domain in domains}
        known = {domain: loss for domain, loss in found.items() if loss is not None}
        logger.info("held-out loss  %s", "  ".join(f"{d} {loss:.3f}" for d, loss in known.items()))
        return {registry.EVAL_LOSS(domain): loss for domain, loss in known.items()}

    def _train_flops(self) -> float:
        """Of training as the model is routed now, per token."""
        length = self.config.train.sequence_length
        return train_flops_per_token(self.routed, self.batches.counts, length)

    def _costs(self) -> dict[str, float]:
        first = phases_of(self.config)[-1].start
        share = first / num_steps(self.config.train)
        costs = cost_metrics(
            self.routed,
            self.state,
            train_flops=share * self.trunk_flops + (1 - share) * self._train_flops(),
            sequence_length=self.config.train.sequence_length,
            device=self.device,
            num_processes=self.processes.world_size,
        )
        costs |= foreign_dropout(self.routed, self.batches.counts, range(first, self.state.step))
        if makes_plan_in_training(self.config):
            # The plan at the end is that of the last phase alone.
            costs.pop(registry.COST_TRAIN_FLOPS_PER_TOKEN.key)
            costs.pop(registry.COST_MFU.key, None)
        return costs
