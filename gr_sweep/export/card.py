"""What an export holds, its model card, and the table that the command prints."""

from dataclasses import dataclass
from typing import NamedTuple

from gr_sweep.domains import is_under
from gr_sweep.routing.plan import ATTN, MLP

_UNITS = {MLP: "MLP hidden units", ATTN: "key-value groups of heads"}

_TEMPLATE = """---
{{ card_data }}
---

# {{ made.run }}: {{ kept if made.keep else "dense" }}

A language model that was trained
{%- if made.keep %} with gradient routing ([Cloud et al. 2024](https://arxiv.org/abs/2410.04332))
{%- endif %} on {{ made.domains | join(", ") }}
{%- if made.removed_blocks %}. The parts that it does not need for {{ kept }} are removed
{%- endif %}.

- kept: {{ kept }}
- removed: {{ made.removed_domains | join(", ") or "nothing" }}
{%- if made.removed_blocks %} (blocks {{ made.removed_blocks | join(", ") }}){% endif %}
{%- for remark in remarks %}
- note: {{ remark }}
{%- endfor %}
{% if made.is_core_of_removed %}
The core, which all domains share, has learned from the removed domains too. This model may still
know something about them; the losses below say how much.
{% endif %}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")  # this folder
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

## Full and extracted model

| | full | extracted |
|---|---:|---:|
{%- for row in costs %}
| {{ row | join(" | ") }} |
{%- endfor %}
{%- for kind, units in made.units.items() %}
| {{ names[kind] }} per layer | {{ units.full }} | {{ units.extracted }} |
{%- endfor %}
{% if made.losses %}
Held-out loss, nats per token, as the run measured it, with 95 % intervals from a bootstrap over
documents:

| domain | full | extracted | difference |
|---|---:|---:|---:|
{%- for row in losses %}
| {{ row | join(" | ") }} |
{%- endfor %}
{% endif %}
## How it was made

```sh
{{ made.commands.values() | select | join("\n") }}
```

Step {{ made.step }} of the run. On random tokens the logits of this checkpoint differ from those of
the run's model with the other blocks switched off by at most {{ "%.1g" % made.logit_difference }}
(float32).
{% for name, value in (made.fingerprints | dictsort) + (made.versions | dictsort) %}
- {{ name }}: `{{ value }}`
{%- endfor %}
"""


class Loss(NamedTuple):
    """Held-out loss with its 95 % interval, if it has one."""

    nats: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Cost:
    """Of one model, padding included."""

    parameters: int
    """Tied parameters count once."""
    flops_per_token: int
    """Of one forward pass."""


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
    """Of nested domains, as in the next two lists, the uppermost ones."""
    removed_domains: list[str]
    """Not kept, and owners of a removed block."""
    unremoved_domains: list[str]
    """Not kept, but owners of no removed block."""
    removed_blocks: list[str]
    is_core_of_removed: bool
    """Whether a removed domain owns the core too, as in all plans but `forget`."""
    full: Cost
    extracted: Cost
    flops_sequence_length: int
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
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gradient-routing", "gr-sweep"],
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        made=made,
        kept=", ".join(made.kept_domains),
        remarks=remarks_of(made),
        costs=cost_rows(made),
        losses=loss_rows(made, with_intervals=True),
        names=_UNITS,
    )
    return str(card)


def table_text(made: Export) -> str:
    """The sizes and losses of both models, in columns."""
    rows = [("", "full", "extracted"), *cost_rows(made)]
    if made.losses:
        rows.append(("held-out loss, nats per token", "", "", "difference"))
        rows += [("  " + row[0], *row[1:]) for row in loss_rows(made, with_intervals=False)]
    first = max(len(row[0]) for row in rows)
    return "\n".join(
        row[0].ljust(first) + "".join(f"  {cell:>14}" for cell in row[1:]) for row in rows
    )


def cost_rows(made: Export) -> list[tuple[str, ...]]:
    """What both models cost."""
    length = made.flops_sequence_length
    return [
        ("parameters", f"{made.full.parameters:,}", f"{made.extracted.parameters:,}"),
        (
            f"FLOPs per token, sequences of {length}",
            f"{made.full.flops_per_token:,}",
            f"{made.extracted.flops_per_token:,}",
        ),
    ]


def loss_rows(made: Export, *, with_intervals: bool) -> list[tuple[str, ...]]:
    """The losses of both models on each domain, and their difference."""

    def shown(loss: Loss | None) -> str:
        if loss is None:
            return "-"
        if not with_intervals or loss.interval is None:
            return f"{loss.nats:.3f}"
        return f"{loss.nats:.3f} ({loss.interval[0]:.3f} to {loss.interval[1]:.3f})"

    rows: list[tuple[str, ...]] = []
    for domain, (full, extracted) in made.losses.items():
        is_removed = any(is_under(domain, node) for node in made.removed_domains)
        name = f"{domain} (removed)" if is_removed else domain
        difference = "-" if extracted is None else f"{extracted.nats - full.nats:+.3f}"
        rows.append((name, shown(full), shown(extracted), difference))
    return rows


def remarks_of(made: Export) -> list[str]:
    """What the numbers alone do not say."""
    remarks = []
    for kind, units in made.units.items():
        if any(units.padding):
            remarks.append(
                f"{sum(units.padding)} of the {_UNITS[kind]} are zero: every layer must have "
                f"{units.extracted}, and the layers keep {', '.join(map(str, units.kept))}"
            )
    if made.unremoved_domains:
        names = ", ".join(made.unremoved_domains)
        remarks.append(f"not removed, though not kept: {names}, which own no removed block")
    if made.removed_blocks and made.extracted.parameters == made.full.parameters:
        remarks.append(
            "the extracted model is as large as the full one: some layer keeps all of its units, "
            "and all layers must be equally wide"
        )
    if not made.is_finished:
        remarks.append(f"the run is not finished: these are its weights after step {made.step}")
    elif made.losses and all(extracted is None for _, extracted in made.losses.values()):
        remarks.append("the run has not measured the loss of this network")
    return remarks
