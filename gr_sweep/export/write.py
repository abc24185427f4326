"""Makes an export: extracts, holds the result against the run's own model, and writes it whole."""

import contextlib
import json
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gr_sweep import __version__
from gr_sweep.domains import ancestors, expand
from gr_sweep.errors import JobError
from gr_sweep.export.card import card_text
from gr_sweep.export.losses import Alone, losses_of, with_alone
from gr_sweep.export.measure import (
    PROMPT_TOKENS,
    Generation,
    cost_of,
    generation_of,
    padding_of,
    random_ids,
)
from gr_sweep.export.record import EXTRACTED, FULL, Export
from gr_sweep.export.run import Run, load_routed
from gr_sweep.files import sync_folder
from gr_sweep.routing.plan import RoutePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-5
"""How far float32 logits may be off by rounding, as a share of their norm."""

_LONGEST = 2048
"""Tokens a sequence that FLOPs are of, where no summary says what the run trained with."""


def export(
    run: Run,
    keep: Sequence[str],
    to: Path,
    *,
    command: str,
    device: torch.device,
    measures_generation: bool = True,
    alone: Mapping[str, Alone] | None = None,
) -> Export:
    """Writes the run's model without the blocks that `keep` switches off to the folder `to`.

    Args:
        keep: nodes of the plan's domains; none for a dense run.
        to: not there, or empty.
        command: the whole command line.
        device: where generation is measured; all else is computed on the CPU in float32.
        alone: by domain a dense run on it alone, to compare with if it is of the same size.

    Raises:
        GrSweepError: a run that cannot be read. Nothing is written then.
        RuntimeError: the extracted model is not that of `keep`, which would be a bug.
    """
    with _quiet_transformers():
        routed, step = load_routed(run)
        plan = routed.plan
        off = plan.kept_off(keep) if keep else ()
        config: Any = routed.model.config
        length = _sequence_length(run, config)

        ids_NT = random_ids(config.vocab_size, 4, PROMPT_TOKENS)
        with routed.blocks_off(off) if off else contextlib.nullcontext():
            wanted_NTV = _logits(routed.model, ids_NT)
        small = routed.extract(keep) if off else routed.model
        _compare(_logits(small, ids_NT), wanted_NTV, "the extracted model")
        padding = padding_of(routed, off, length)
        last_round = run.last_round(plan)
        losses = losses_of(run.summary, plan, off, keep, last_round and last_round[1])
        small_config: Any = small.config
        losses, name_of_alone = with_alone(
            losses, run, plan, keep, small_config.intermediate_size, alone or {}
        )
        full = routed.unroute()
        full_cost, small_cost = cost_of(full, length), cost_of(small, length)

        beside = to.absolute().parent / f".{to.absolute().name}.{secrets.token_hex(4)}.tmp"
        beside.mkdir(parents=True)
        try:
            small.save_pretrained(beside)
            for weights in beside.glob("*.safetensors"):  # written for the owner alone
                shutil.copymode(beside / "config.json", weights)
            for path in run.other_files:
                copy = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, beside / path.name)
            difference = _compare(_reloaded_logits(beside, ids_NT), wanted_NTV, "the checkpoint")

            generation: dict[str, Generation] = {}
            if measures_generation:
                models = {FULL: full, EXTRACTED: small} if off else {FULL: full}
                generation = generation_of(models, device)
                generation.setdefault(EXTRACTED, generation[FULL])
            made = Export(
                run=run.folder.resolve().name,
                step=step,
                is_finished=bool(run.summary),
                domains=list(run.summary.get("domains", plan.domains)),
                keep=list(keep),
                **_domains_of(plan, keep, off),
                removed_blocks=[plan.blocks[block].name for block in off],
                is_core_of_removed=any(
                    plan.blocks[block].owners & plan.core.owners for block in off
                ),
                full=full_cost,
                extracted=small_cost,
                flops_sequence_length=length,
                padding=padding,
                generation=generation,
                losses=losses,
                alone=name_of_alone,
                largest_logit_difference=difference,
                commands={"run": str(run.summary.get("command", "")), "export": command},
                fingerprints=dict(run.summary.get("fingerprints", {})),
                environment=_environment(device),
            )
            (beside / "export.json").write_text(
                json.dumps(made.as_dict(), indent=1) + "\n", encoding="utf-8"
            )
            (beside / "README.md").write_text(card_text(made), encoding="utf-8")
            sync_folder(beside)
            _move(beside, to)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return made


def _move(beside: Path, to: Path) -> None:
    try:
        beside.replace(to)  # takes the place of an empty folder too
    except OSError as error:
        raise JobError(f"--to {to} cannot be written: {error.strerror}") from error


def _domains_of(plan: RoutePlan, keep: Sequence[str], off: Sequence[int]) -> dict[str, list[str]]:
    kept = expand(keep, plan.domains) if keep else plan.domains
    gone = {domain for block in off for domain in plan.blocks[block].owners}
    others = [domain for domain in plan.domains if domain not in kept]
    return {
        "kept_domains": _nodes_of(kept, plan),
        "removed_domains": _nodes_of([domain for domain in others if domain in gone], plan),
        "unremoved_domains": _nodes_of([domain for domain in others if domain not in gone], plan),
    }


def _nodes_of(labels: Sequence[str], plan: RoutePlan) -> list[str]:
    """The uppermost nodes that stand for nothing but these labels."""
    found: dict[str, None] = {}
    for label in labels:
        nodes = (n for n in ancestors(label) if set(expand([n], plan.domains)) <= set(labels))
        # A label above others stands for them too.
        found[next(nodes, label)] = None
    return list(found)


def _sequence_length(run: Run, config: Any) -> int:
    trained = run.summary.get("config", {}).get("train", {}).get("sequence_length")
    return int(trained or min(config.max_position_embeddings, _LONGEST))


@torch.no_grad()
def _logits(model: "PreTrainedModel", ids_NT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_NT, use_cache=False).logits
    return logits


def _reloaded_logits(folder: Path, ids_NT: Tensor) -> Tensor:
    """As anybody else would read the checkpoint."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return _logits(loaded.eval(), ids_NT)


def _compare(found_NTV: Tensor, wanted_NTV: Tensor, what: str) -> float:
    """The largest difference of a logit.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    difference_NTV = found_NTV - wanted_NTV
    share = float(difference_NTV.norm() / wanted_NTV.norm())
    largest = float(difference_NTV.abs().max())
    if not share <= TOLERANCE:
        raise RuntimeError(
            f"the logits of {what} are up to {largest:.2g} off those of the run's model with the "
            f"other blocks switched off ({share:.2g} of their norm; rounding makes {TOLERANCE:g} "
            "at most); this is a bug of gr-sweep, and nothing was written"
        )
    return largest


def _environment(device: torch.device) -> dict[str, Any]:
    import transformers

    is_cuda = device.type == "cuda"
    return {
        "gr_sweep": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without progress bars and remarks: what it says here, the table says better."""
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
