"""What an export holds, its model card, and the table that the command prints."""

from dataclasses import dataclass
from typing import NamedTuple

from gr_sweep.routing.plan import ATTN, MLP

_UNITS = {MLP: "MLP hidden units", ATTN: "key-value groups of heads"}

_CARD = """---
{data}
---

# {made.run}: {kept}

A language model that was trained on {domains}{routing}, by gr-sweep.

- kept: {kept}
- removed: {removed}
{remarks}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")  # this folder
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

## Full and extracted model

{table}
{losses}
## How it was made

```sh
{commands}
```

Step {made.step} of the run. On random tokens the logits of this checkpoint differ from those of
the run's model{off} by at most {made.logit_difference:.1g} (float32).

{versions}
"""

_ROUTING = """ with gradient routing
([Cloud et al. 2024](https://arxiv.org/abs/2410.04332))"""

_LOSSES = """
Losses are held-out, in nats per token, as the run measured them, with 95 % intervals from a
bootstrap over documents.
"""


class Loss(NamedTuple):
    """Held-out loss with its 95 % interval, if it has one."""

    nats: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Units:
    """Units of one kind in each layer."""

    full: int
    kept: list[int]
    """By layer."""
    extracted: int
    """In all layers of the extracted model, which must be equally wide."""
    padding: list[int]
    """Zero units by layer."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was exported; the content of export.json."""

    run: str
    """Name of the job."""
    step: int
    is_finished: bool
    """Whether the job has finished; losses are empty before that."""
    domains: list[str]
    keep: list[str]
    """As typed; empty for a dense run."""
    kept_domains: list[str]
    removed_domains: list[str]
    """Not kept, and owners of a removed block."""
    unremoved_domains: list[str]
    """Not kept, but owners of no removed block."""
    removed_blocks: list[str]
    is_core_of_removed: bool
    """Whether a removed domain owns the core too, as in all plans but `forget`."""
    full_parameters: int
    """Tied ones count once."""
    parameters: int
    """Of the extracted model, padding included."""
    units: dict[str, Units]
    """By unit kind, of those that the plan splits."""
    losses: dict[str, tuple[Loss, Loss | None]]
    """By domain, of the full and of the extracted model; None where the run did not measure it."""
    logit_difference: float
    """Largest difference between the checkpoint and the run's model with the blocks off."""
    commands: dict[str, str]
    fingerprints: dict[str, str]
    """Of the run."""
    versions: dict[str, str]


def card_text(made: Export) -> str:
    """README.md of the checkpoint."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*(["gradient-routing"] if made.keep else []), "gr-sweep"],
    )
    names, *rows = (f"| {' | '.join(row)} |" for row in _rows(made))
    versions = made.fingerprints | made.versions
    return _CARD.format(
        data=data,
        made=made,
        domains=", ".join(made.domains),
        routing=_ROUTING if made.keep else "",
        off=" with the other blocks switched off" if made.keep else "",
        losses=_LOSSES if made.losses else "",
        kept=", ".join(made.keep) or "all, the run is dense",
        removed=", ".join(made.removed_domains) or "nothing",
        remarks="\n".join(f"- note: {remark}" for remark in remarks_of(made)),
        table="\n".join([names, "|---|---:|---:|", *rows]),
        commands="\n".join(command for command in made.commands.values() if command),
        versions="\n".join(f"- {name}: `{value}`" for name, value in versions.items()),
    )


def table_text(made: Export) -> str:
    """The sizes and losses of both models, in columns."""
    rows = _rows(made)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:{widths[0]}}  {full:>{widths[1]}}  {extracted:>{widths[2]}}"
        for name, full, extracted in rows
    )


def _rows(made: Export) -> list[tuple[str, str, str]]:
    def shown(loss: Loss | None) -> str:
        if loss is None:
            return "-"
        interval = f" ({loss.interval[0]:.3f} to {loss.interval[1]:.3f})" if loss.interval else ""
        return f"{loss.nats:.3f}{interval}"

    return [
        ("", "full", "extracted"),
        ("parameters", f"{made.full_parameters:,}", f"{made.parameters:,}"),
        *(
            (f"{_UNITS[kind]} per layer", str(units.full), str(units.extracted))
            for kind, units in made.units.items()
        ),
        *((f"loss on {d}", shown(one), shown(other)) for d, (one, other) in made.losses.items()),
    ]


def remarks_of(made: Export) -> list[str]:
    """What the numbers alone do not say."""
    remarks = [
        f"{sum(units.padding)} of the {_UNITS[kind]} are zero: every layer must have "
        f"{units.extracted}, and the layers keep {', '.join(map(str, units.kept))}"
        for kind, units in made.units.items()
        if any(units.padding)
    ]
    if made.unremoved_domains:
        names = ", ".join(made.unremoved_domains)
        remarks.append(f"not removed, though not kept: {names}, which own no removed block")
    if made.is_core_of_removed:
        remarks.append(
            "the core, which all domains share, has learned from the removed domains too: the "
            "model may still know something about them; the losses say how much"
        )
    if not made.is_finished:
        remarks.append(f"the run is not finished: these are its weights after step {made.step}")
    return remarks
