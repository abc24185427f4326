"""What an export holds, its model card, and the lines that the command prints."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gr_sweep.routing.kinds import ATTN, EXPERT, MLP

if TYPE_CHECKING:
    from gr_sweep.model.extract import KeptUnits

_UNITS = {MLP: "MLP hidden units", EXPERT: "experts", ATTN: "key-value groups of heads"}

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gr-sweep
---

# {made.run}: {kept}

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

Step {made.step} of the run. On random tokens the logits of this checkpoint differ from those of
the run's model with only what is kept by at most {made.logit_difference:.1g} (float32).

{versions}
"""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was exported; the content of export.json."""

    run: str
    """Name of the job."""
    step: int
    is_finished: bool
    domains: list[str]
    keep: list[str]
    """As typed; empty for a dense run."""
    removed_domains: list[str]
    """Not kept, and owners of a removed block."""
    unremoved_domains: list[str]
    """Not kept, but owners of no removed block."""
    is_core_of_removed: bool
    """Whether a removed domain owns the core too, as in all plans but `forget`."""
    full_parameters: int
    """Tied ones count once."""
    parameters: int
    """Of the extracted model, padding included."""
    units: "dict[str, KeptUnits]"
    """By unit kind, of those that the plan splits."""
    logit_difference: float
    """Largest difference between the checkpoint and the run's model with the blocks off."""
    commands: dict[str, str]
    fingerprints: dict[str, str]
    """Of the run."""
    versions: dict[str, str]


def card_text(made: Export) -> str:
    """README.md of the checkpoint."""
    versions = made.fingerprints | made.versions
    return _CARD.format(
        made=made,
        domains=", ".join(made.domains),
        kept=", ".join(made.keep) or "all, the run is dense",
        removed=", ".join(made.removed_domains) or "nothing",
        facts="\n".join(f"- {line}" for line in facts_of(made)),
        commands="\n".join(command for command in made.commands.values() if command),
        versions="\n".join(f"- {name}: `{value}`" for name, value in versions.items()),
    )


def facts_of(made: Export) -> list[str]:
    """Sizes of the extracted model and the full one, and what they alone do not say."""
    lines = [f"parameters: {made.parameters:,} of {made.full_parameters:,}"]
    for kind, units in made.units.items():
        lines.append(f"{_UNITS[kind]} per layer: {units.extracted} of {units.full}")
        if any(units.padding):
            lines.append(
                f"{sum(units.padding)} of the {_UNITS[kind]} are zero: every layer must have "
                f"{units.extracted}, and the layers keep {', '.join(map(str, units.kept))}"
            )
    if made.unremoved_domains:
        names = ", ".join(made.unremoved_domains)
        lines.append(f"not removed, though not kept: {names}, which own no removed block")
    if made.is_core_of_removed:
        lines.append(
            "the core, which all domains share, has learned from the removed domains too: the "
            "model may still know something about them; the losses of the run say how much"
        )
    if not made.is_finished:
        lines.append(f"the run is not finished: these are its weights after step {made.step}")
    return lines
