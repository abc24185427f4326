"""One job, from its config to summary.json: the one place that wires the parts together."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gr_sweep.config import (
    ProcedureKind,
    Resume,
    RunConfig,
    num_steps,
    to_plain,
)
from gr_sweep.data.batches import Batches
from gr_sweep.data.prepare import prepare_data, text_fingerprint
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.domains import expand, weights_of_round
from gr_sweep.errors import DataError, JobError
from gr_sweep.eval.removal import removal_losses
from gr_sweep.eval.robustness import check_processes, recovery, robustness_losses
from gr_sweep.eval.samples import Sampler
from gr_sweep.eval.text import TrainingText
from gr_sweep.files import content_digest, write_whole
from gr_sweep.jobdir import (
    CHECKPOINTS,
    DOCUMENT_LOSSES,
    METRICS,
    PLAN,
    RELEARN,
    SAMPLES,
    SUMMARY,
    Identity,
    check_files,
    differences,
    different_job,
    identity_of,
    is_done,
    read_summary,
    write_summary,
)
from gr_sweep.joblock import JobLock, lock_job_dir
from gr_sweep.layout import phases_of
from gr_sweep.metrics import registry
from gr_sweep.metrics.cost import peak_flops
from gr_sweep.metrics.losses import DocumentLoss, write_losses, write_relearn
from gr_sweep.metrics.tables import summarize_losses
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.setup import (
    heldout_batches,
    heldout_read,
    make_batches,
    make_routed,
    make_sampler,
    marked_texts,
    route_settings,
    save_model_files,
)
from gr_sweep.tracking import Trackers, make_tracker, run_tags
from gr_sweep.train.checkpoint import Checkpoints, report_kept_checkpoints
from gr_sweep.train.cost import (
    forward_flops_per_token,
    kept_flops_per_token,
    kept_parameters,
    num_parameters,
    train_flops_per_token,
)
from gr_sweep.train.distributed import Processes, connect, shard
from gr_sweep.train.finite import dump_bad_batch
from gr_sweep.train.loop import Trainer, TrainState, start
from gr_sweep.train.signals import StopSignals
from gr_sweep.train.step import is_bfloat16, precision_context

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
    memory_advice: Callable[[RunConfig, int], str] | None = None,
) -> None:
    """Runs a job to its end, or on from where it stopped; a job with a summary is done.

    Args:
        config: validated and resolved (`checks.validate`).
        folder: the job's own; DESIGN section 8 says what is in it afterwards.
        sweep: name of the sweep, the W&B group.
        overrides: what was typed for this job.
        command: the whole command line.
        title: what people call it.
        is_baseline: whether the results of an equal job, of the same code and text, may be taken
            from another sweep beside this one.
        memory_advice: what to say of a job, and its number of processes, that runs out of memory.

    Raises:
        GrSweepError: what the user can mend; nothing that was computed is lost.
        Stopped: a signal asked it to.
    """
    processes = connect()
    signals = StopSignals()
    with (
        signals.listening(),
        report_kept_checkpoints(folder / CHECKPOINTS),
        contextlib.ExitStack() as stack,
    ):
        text = processes.main_first(
            lambda: text_fingerprint(
                config.data, config.partition, config.model.path, config.model.gguf_file
            )
        )
        locks: list[JobLock] = []

        def lock() -> bool:
            """Locks the folder, in the main process for all; false where the job is done."""
            identity = identity_of(config, text)
            if is_done(folder, identity):
                return False
            changes = differences(folder, identity)
            if changes and config.resume is not Resume.force:
                raise different_job(folder, changes)
            locks.append(stack.enter_context(lock_job_dir(folder, title)))
            return not is_done(folder, identity)  # another process may just have finished it

        if not processes.from_main(lock):
            return
        # Before any work.
        processes.rows(sum(micro_batch_rows(config).values()))
        check_processes(config.eval, processes.world_size)
        if processes.are_several and config.procedure.name is ProcedureKind.alternate:
            raise JobError(
                "procedure=alternate needs the whole model in one process; start one, or use "
                "procedure=fixed"
            )
        with (
            _out_of_memory(config, processes.world_size, memory_advice),
            processes.joined(config.train.device) as device,
        ):
            _run(
                config,
                folder,
                locks,
                processes,
                device,
                signals,
                sweep=sweep,
                overrides=overrides,
                command=command,
                is_baseline=is_baseline,
            )


@contextlib.contextmanager
def _out_of_memory(
    config: RunConfig, world_size: int, advice: Callable[[RunConfig, int], str] | None
) -> Iterator[None]:
    """Says what to change where memory ends, of a GPU or of the machine."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or (
            isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        )
        if not is_memory:
            raise
        [said, *_] = str(error).strip().splitlines() or [type(error).__name__]
        # The model goes before the advice, which builds one of its own that has no data.
        traceback.clear_frames(error.__traceback__)
        help_ = "" if advice is None else f"; {advice(config, world_size)}"
        raise JobError(f"out of memory ({said.rstrip('.')}){help_}") from error


def _run(
    config: RunConfig,
    folder: Path,
    locks: list[JobLock],
    processes: Processes,
    device: torch.device,
    signals: StopSignals,
    *,
    sweep: str,
    overrides: list[str],
    command: str,
    is_baseline: bool,
) -> None:
    """The job, in each of its processes; the main one alone tracks, writes and says anything."""
    started = datetime.now(UTC)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of the job before in this process
    data = processes.main_first(
        lambda: prepare_data(
            config.data, config.partition, config.model.path, config.model.gguf_file
        )
    )

    # Of the text that is read: files may have changed since the folder was locked.
    identity = identity_of(config, data.fingerprint)
    plain = to_plain(config)
    if is_baseline and processes.from_main(lambda: _taken_over(folder, identity, sweep)):
        return

    def begin() -> tuple[str, list[str]]:
        """What the run's checkpoints began with, and what has changed since."""
        [lock] = locks
        record = lock.begin(identity, num_steps(config.train), force=config.resume is Resume.force)
        return f"{record.fingerprints['config']}:{record.fingerprints['text']}", record.changes

    begun_with, changes = processes.from_main(begin)

    is_alternate = config.procedure.name is ProcedureKind.alternate

    def make() -> tuple[Batches, RoutedModel, TokenLosses]:
        batches = make_batches(config, data)
        routed = make_routed(config, data)
        return batches, routed, TokenLosses(routed)

    # A checkpoint may have to be downloaded.
    share = processes.together if config.model.path is None else processes.main_first
    batches, routed, token_losses = share(make)
    if processes.are_several:
        layers = decoder_layers(routed.model, family_of(routed.model.config))
        shard(token_losses, layers, device, bfloat16=is_bfloat16(device, config.train.precision))
    else:
        routed.model.to(device)  # type: ignore[arg-type]
    held_out = heldout_batches(config, data, config.eval.tokens, device, processes)
    curve_tokens = min(config.eval.curve_tokens, config.eval.tokens)
    curve = heldout_batches(config, data, curve_tokens, device, processes)
    sampler: Sampler | None = None
    if config.eval.samples:
        is_shared = processes.world_size > 1
        sampler = make_sampler(config, data, routed, token_losses, device, is_shared=is_shared)
    if processes.is_main:
        save_model_files(folder, routed.model, data.tokenizer_dir)
    if processes.is_main and not is_alternate:
        write_whole(folder / PLAN, routed.plan.to_json() + "\n")

    def track() -> Trackers:
        if not processes.is_main:
            return Trackers([])
        return make_tracker(
            config.tracking,
            folder=folder,
            job=folder.name,
            sweep=sweep,
            run_config=plain,
            tags=run_tags(plain),
        )

    tracker = processes.together(track)
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        keep=config.train.keep_checkpoints,
        fingerprint=begun_with,
        processes=processes,
    )

    watched = curve.documents
    full: list[DocumentLoss] = []

    def evaluate(is_last: bool) -> dict[str, float]:
        """Losses of the curve's documents; at the end from those of all, which the matrices have
        too."""
        routed.model.eval()
        with precision_context(device, config.train.precision):
            rows = (held_out if is_last else curve).losses(token_losses)
        if is_last:
            full[:] = rows
            rows = [row for row in rows if (row.domain, row.document) in watched]
        metrics, _ = summarize_losses(rows, data.domains, seed=config.seed, resamples=0)
        found = {domain: metrics.get(registry.LOSS_FULL(domain)) for domain in data.domains}
        return {
            registry.EVAL_LOSS(domain): loss for domain, loss in found.items() if loss is not None
        }

    recovery_steps = 0
    if routed.plan.removable():
        recovery_steps = round(config.method.recovery * num_steps(config.train))
    training = config.train
    if recovery_steps:
        # They are a part of the run: no method trains longer than another.
        steps = num_steps(config.train) - recovery_steps
        training = dataclasses.replace(config.train, steps=steps, tokens=None)
    micro_batch_sequences = config.train.micro_batch_sequences or config.train.batch_sequences

    def rows_without(part: str) -> Callable[[int], np.ndarray] | None:
        """What training goes on with after a removal: rows that carry the others' labels."""
        gone = expand([part], data.domains)
        labels = [name for name in data.domains if batches.counts[name] and name not in gone]
        if not labels:
            return None
        return lambda step: batches.labelled(num_steps(training) + step, labels)

    recover = recovery(
        routed,
        token_losses,
        rows_without,
        recovery_steps,
        lr=config.train.lr,
        seed=config.seed,
        device=device,
        micro_batch_sequences=micro_batch_sequences,
        num_processes=processes.world_size,
    )
    if sampler is not None:
        recover = sampler.recovering(recover)

    with tracker:
        run = start(
            routed.model,
            training,
            checkpoints=checkpoints,
            tracker=tracker,
            processes=processes,
            plan=None if is_alternate else routed.plan,
            phases=[phase.stop - phase.start for phase in phases_of(config)]
            if is_alternate
            else None,
            rewarm=config.procedure.rewarm,
        )

        def train_to(batches: Batches, stop: int | None = None) -> None:
            Trainer(
                training=run,
                routed=routed,
                token_losses=token_losses,
                batches=batches,
                config=training,
                seed=config.seed,
                eval_every=config.eval.every,
                evaluate=evaluate,
                tracker=tracker,
                checkpoints=checkpoints,
                device=device,
                processes=processes,
                signals=signals,
                dump_bad_batch=functools.partial(
                    dump_bad_batch, folder=folder, tokenizer_dir=data.tokenizer_dir
                ),
            ).run(stop)

        weights: Mapping[str, float] = config.data.weights
        rows: list[DocumentLoss] | None = None
        last: LastRound | None = None
        if is_alternate:
            # With scipy, which takes a second: most jobs have no rounds.
            from gr_sweep.alternate import Alternation

            last = Alternation(
                config=config,
                data=heldout_read(config, data),
                routed=routed,
                token_losses=token_losses,
                training=run,
                folder=folder,
                tracker=tracker,
                device=device,
                make_batches=functools.partial(make_batches, config),
                make_held_out=lambda text: heldout_batches(config, text, None, device, processes),
                train_to=train_to,
                route=route_settings(config),
                computing=lambda: precision_context(device, config.train.precision),
            ).run()
            weights = weights_of_round(weights, data.domains, last.data.domains)
            batches, held_out, rows = last.batches, last.held_out, last.rows
        else:
            train_to(batches)
        text = TrainingText(
            data.train if last is None else last.data.train,
            config.train.sequence_length,
            micro_batch_sequences,
            config.seed,
            weights,
        )
        state = run.state
        run.end()
        eval_start = time.perf_counter()
        with precision_context(device, config.train.precision):
            if rows is None:
                # A run that was stopped after its last step was not evaluated in this process.
                rows = removal_losses(routed, token_losses, held_out, full or None, recover)
            for text_kind, markers in marked_texts(data).items():
                marked = heldout_batches(
                    config, data, config.eval.tokens, device, processes, text_kind, markers
                )
                rows += removal_losses(routed, token_losses, marked, None, recover)
            more_rows, relearned = robustness_losses(
                routed,
                token_losses,
                held_out,
                text,
                config.eval,
                without=config.method.without,
                parts=None if last is None else last.nodes,
                recover=recover,
                lr=config.train.lr,
                device=device,
                num_processes=processes.world_size,
            )
            rows += more_rows
            samples = None
            if sampler is not None:
                samples = sampler.sample(None if last is None else last.nodes)
        if last is not None:
            rows, relearned = last.of_partition(rows), last.of_partition(relearned)
        state.eval_s += time.perf_counter() - eval_start
        if not processes.is_main:
            tracker.finish({})
            return
        if samples is None:
            (folder / SAMPLES).unlink(missing_ok=True)  # of an attempt that was to have some
        else:
            write_whole(folder / SAMPLES, json.dumps(samples, indent=1) + "\n")
        write_losses(folder / DOCUMENT_LOSSES, rows)
        if relearned:
            write_relearn(folder / RELEARN, relearned)
        metrics, intervals = summarize_losses(
            rows,
            data.domains,
            seed=config.seed,
            resamples=config.eval.bootstrap,
            blocks={block.name: block.owners for block in routed.plan.blocks if not block.is_core},
        )
        costs = cost_metrics(
            routed,
            state,
            counts=batches.counts,
            sequence_length=config.train.sequence_length,
            device=device,
            num_processes=processes.world_size,
        )
        if is_alternate:
            # The plan at the end is that of the last phase alone.
            costs.pop(registry.COST_TRAIN_FLOPS_PER_TOKEN.key)
            costs.pop(registry.COST_MFU.key, None)
        summary = {
            "format": 1,
            "job": folder.name,
            "sweep": sweep,
            "command": command,
            "overrides": overrides,
            "domains": list(data.domains),
            "config": plain,
            "fingerprints": identity.fingerprints,
            # Not empty where it was told to go on with other code, settings or text.
            "changes": changes,
            "files": {
                name: content_digest(folder / name)
                for name in (PLAN, DOCUMENT_LOSSES, RELEARN, SAMPLES)
                if (folder / name).exists()
            },
            "environment": environment(device, processes.world_size),
            "metrics": metrics
            | costs
            | {
                registry.COST_TRAIN_TOKENS.key: state.tokens
                + recovery_steps * batches.tokens_per_step
            },
            "intervals": intervals,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # W&B first: a job with a summary is done, and nobody would come back to finish its W&B run.
        tracker.finish(summary)
        write_summary(folder / SUMMARY, summary)


def _taken_over(folder: Path, identity: Identity, sweep: str) -> bool:
    """Copies the results of an equal job of another sweep beside this one; says if there is one.

    Equal are config, text and code: the copy is what the job would have come to. It makes the
    folder of a sweep complete by itself.
    """
    # Folders of jobs end in these digits, unless the user names them otherwise.
    for path in sorted(folder.parent.parent.glob(f"*/*-{identity.config[:8]}/{SUMMARY}")):
        try:
            summary = read_summary(path)
            check_files(path.parent, summary.get("files", {}))
        except (OSError, DataError):
            continue
        if (
            path.parent.resolve() == folder.resolve()
            or summary.get("fingerprints") != identity.fingerprints
        ):
            continue
        if summary.get("changes"):
            continue  # begun with others: what it came to is nobody else's
        for name in (PLAN, METRICS, DOCUMENT_LOSSES, RELEARN, SAMPLES):
            if (path.parent / name).exists():
                write_whole(folder / name, (path.parent / name).read_text(encoding="utf-8"))
        origin = f"{path.parent.parent.name}/{path.parent.name}"
        summary |= {"job": folder.name, "sweep": sweep, "taken_from": origin}
        write_summary(folder / SUMMARY, summary)
        logger.info("the same job is done in %s: its results are taken over", origin)
        return True
    return False


def cost_metrics(
    routed: RoutedModel,
    state: TrainState,
    *,
    counts: Mapping[str, int],
    sequence_length: int,
    device: torch.device,
    num_processes: int,
) -> dict[str, float]:
    """cost/*: speed and memory of training, parameters and operations of the full model and of
    each expert alone; `counts` are the rows of a micro-batch by label. Speed is that of all
    processes together, memory that of this one."""
    train_flops = train_flops_per_token(routed, counts, sequence_length)
    metrics: dict[str, float] = {
        registry.COST_TRAIN_SECONDS.key: state.train_s,
        registry.COST_EVAL_SECONDS.key: state.eval_s,
        registry.COST_PARAMETERS.key: num_parameters(routed),
        registry.COST_FLOPS_PER_TOKEN.key: forward_flops_per_token(routed, sequence_length),
        registry.COST_TRAIN_FLOPS_PER_TOKEN.key: train_flops,
    }
    if state.assign_s:
        metrics[registry.COST_ASSIGN_SECONDS.key] = state.assign_s
    if state.train_s > 0:
        metrics[registry.COST_EVAL_SHARE.key] = state.eval_s / (state.train_s + state.eval_s)
        speed = state.tokens / state.train_s
        metrics[registry.COST_TOKENS_PER_SECOND.key] = speed
        metrics[registry.COST_DATA_SHARE.key] = state.data_s / state.train_s
        if device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(device))
            if peak is not None:
                metrics[registry.COST_MFU.key] = speed * train_flops / (peak * num_processes)
    if device.type == "cuda":
        metrics[registry.COST_PEAK_MEMORY_GIB.key] = torch.cuda.max_memory_allocated(device) / 2**30
    for domain, parameters in kept_parameters(routed).items():
        metrics[registry.PARAMETERS_KEPT(domain)] = parameters
    for domain, flops in kept_flops_per_token(routed, sequence_length).items():
        metrics[registry.FLOPS_PER_TOKEN_KEPT(domain)] = flops
    return metrics


def environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """What the job ran on."""
    import transformers

    from gr_sweep import __version__

    return {
        "gr_sweep": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processes": num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": sys.platform,
    }
