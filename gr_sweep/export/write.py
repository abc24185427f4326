"""Writes an export: extracts the model, compares its logits with the run's model, adds the card."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from gr_sweep import __version__
from gr_sweep.domains import expand
from gr_sweep.errors import JobError
from gr_sweep.export.run import Run, load_routed
from gr_sweep.files import sync_folder
from gr_sweep.jobdir import MODEL
from gr_sweep.model.extract import kept_units
from gr_sweep.model.pretrained import quiet_transformers
from gr_sweep.routing.kinds import ATTN, EXPERT, MLP
from gr_sweep.train.cost import num_parameters

TOLERANCE = 1e-5
"""Largest norm of the difference of float32 logits, as a share of the norm of the logits."""

_CHECKED_SHAPE = (4, 32)
"""Of the random text that logits are compared on: sequences, tokens."""

_UNITS = {MLP: "MLP hidden units", EXPERT: "experts", ATTN: "key-value groups of heads"}

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gr-sweep
---

# {run}: {kept}

A language model that was trained on {domains} by gr-sweep, which compares ways of
[gradient routing](https://arxiv.org/abs/2410.04332).

- kept: {kept}
- removed: {removed}
{facts}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")  # this folder
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

## How it was made

```sh
{commands}
```

Step {step} of the run. On random tokens the logits of this checkpoint differ from those of the
run's model with only what is kept by at most {logit_difference:.1g} (float32).

{versions}
"""


def export(run: Run, keep: Sequence[str], to: Path, *, command: str) -> dict[str, Any]:
    """Writes the run's model without the blocks that `keep` switches off.

    Args:
        keep: domains, or nodes above them; empty for a dense run.
        to: a folder that does not exist, or is empty.
        command: the command line, for the card.

    Returns:
        The content of export.json.

    Raises:
        GrSweepError: the run cannot be read, or `to` cannot be written. Nothing is written then.
        RuntimeError: the logits differ from those of `keep`, which would be a bug.
    """
    beside = to.absolute().parent / f".export-{secrets.token_hex(4)}.tmp"
    try:
        if to.exists() and os.listdir(to):
            raise JobError(f"--to {to} is not an empty folder; give a new one")
        beside.mkdir(parents=True)
        with quiet_transformers():
            made = _write(run, keep, beside, command)
        sync_folder(beside)
        beside.replace(to)  # replaces an empty folder too
    except OSError as error:
        raise JobError(f"--to {to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return made


def _write(run: Run, keep: Sequence[str], folder: Path, command: str) -> dict[str, Any]:
    """Writes the checkpoint, the card and export.json into the folder."""
    routed, step = load_routed(run)
    plan, config = routed.plan, cast(Any, routed.model.config)
    off = plan.kept_off(keep) if keep else ()
    generator = torch.Generator().manual_seed(0)
    ids_NT = torch.randint(config.vocab_size, _CHECKED_SHAPE, generator=generator)
    with routed.blocks_off(off) if off else contextlib.nullcontext():
        wanted_NTV = _logits(routed.model, ids_NT)
    full_parameters = num_parameters(routed)
    kinds = {kind for _, kind in plan.splits}
    units = {k: kept._asdict() for k, kept in kept_units(plan, config, off).items() if k in kinds}
    small = routed.extract(keep or plan.domains)
    if getattr(small.get_output_embeddings(), "bias", None) is not None:
        raise JobError(
            "the kept blocks have biases of the output vocabulary, for which checkpoints of "
            f"{config.model_type} have no place; train with plan.adapters.bias=false"
        )
    small.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # which only this user could read
        shutil.copymode(folder / "config.json", weights)
    ignored = shutil.ignore_patterns("config.json")
    shutil.copytree(run.folder / MODEL, folder, ignore=ignored, dirs_exist_ok=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    kept = expand(keep, plan.domains) if keep else plan.domains
    owners = {domain for block in off for domain in plan.blocks[block].owners}
    made = {
        "format": 3,
        "run": run.folder.resolve().name,
        "step": step,
        "is_finished": bool(run.summary),
        "domains": list(run.summary.get("domains", plan.domains)),
        "keep": list(keep),
        "removed_domains": [d for d in plan.domains if d not in kept and d in owners],
        "unremoved_domains": [d for d in plan.domains if d not in kept and d not in owners],
        "is_core_of_removed": bool(owners & plan.core.owners),
        "full_parameters": full_parameters,
        "parameters": small.num_parameters(),
        "units": units,
        "logit_difference": _difference(_logits(loaded.eval(), ids_NT), wanted_NTV),
        "commands": {"run": str(run.summary.get("command", "")), "export": command},
        "fingerprints": dict(run.summary.get("fingerprints", {})),
        "versions": {
            "gr_sweep": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "export.json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(_card(made), "utf-8")
    return made


def _card(made: dict[str, Any]) -> str:
    """README.md of the checkpoint."""
    versions = made["fingerprints"] | made["versions"]
    texts = {
        "domains": ", ".join(made["domains"]),
        "kept": ", ".join(made["keep"]) or "all, the run is dense",
        "removed": ", ".join(made["removed_domains"]) or "nothing",
        "facts": "\n".join(f"- {line}" for line in facts_of(made)),
        "commands": "\n".join(command for command in made["commands"].values() if command),
        "versions": "\n".join(f"- {name}: `{value}`" for name, value in versions.items()),
    }
    return _CARD.format_map(made | texts)


def facts_of(made: dict[str, Any]) -> list[str]:
    """Sizes of the extracted model and the full one, and what they alone do not say; from the
    content of export.json."""
    lines = [f"parameters: {made['parameters']:,} of {made['full_parameters']:,}"]
    for kind, units in made["units"].items():
        lines.append(f"{_UNITS[kind]} per layer: {units['extracted']} of {units['full']}")
        if {*units["kept"]} != {units["extracted"]}:
            lines.append(
                f"every layer must have {units['extracted']}: those that keep fewer (the layers "
                f"keep {', '.join(map(str, units['kept']))}) are padded with zeros"
            )
    if made["unremoved_domains"]:
        names = ", ".join(made["unremoved_domains"])
        lines.append(f"not removed, though not kept: {names}, which own no removed block")
    if made["is_core_of_removed"]:
        lines.append(
            "the core, which all domains share, has learned from the removed domains too: the "
            "model may still know something about them; the losses of the run say how much"
        )
    if not made["is_finished"]:
        lines.append(f"the run is not finished: these are its weights after step {made['step']}")
    return lines


@torch.no_grad()
def _logits(model: Any, ids_NT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_NT, use_cache=False).logits
    return logits


def _difference(found_NTV: Tensor, wanted_NTV: Tensor) -> float:
    """The largest difference of two logits.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    difference_NTV = found_NTV - wanted_NTV
    share = float(difference_NTV.norm() / wanted_NTV.norm())
    largest = float(difference_NTV.abs().max())
    if not share <= TOLERANCE:
        raise RuntimeError(
            f"the logits of the checkpoint differ by up to {largest:.2g} ({share:.2g} of their "
            "norm) from those of the run's model: a bug of gr-sweep, and nothing was written"
        )
    return largest
