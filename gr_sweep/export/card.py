"""The model card of an export, and the table that the command prints."""

import itertools

from gr_sweep.domains import is_under
from gr_sweep.export.losses import Loss
from gr_sweep.export.measure import NEW_TOKENS, PROMPT_TOKENS, REPEATS
from gr_sweep.export.record import EXTRACTED, FULL, Export
from gr_sweep.routing.plan import ATTN, MLP

_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gradient-routing
- gr-sweep
---
"""

_ALONE = "alone"
"""Heads the column of the dense model that was trained on the kept domain alone."""

_UNITS = {MLP: "MLP hidden units", ATTN: "key-value groups of heads"}

Row = tuple[str, ...]


def cost_rows(made: Export) -> list[Row]:
    """What it is, the full model's, the extracted one's, and what the second is of the first."""
    rows = [
        _counted("parameters", made.full.parameters, made.extracted.parameters),
        _counted("parameters of MLPs", made.full.mlp_parameters, made.extracted.mlp_parameters),
        _counted(
            f"FLOPs a token, at {made.flops_sequence_length} tokens a sequence",
            made.full.flops_per_token,
            made.extracted.flops_per_token,
        ),
        _mebibytes("weights, float32, MiB", made.full.weight_bytes, made.extracted.weight_bytes),
    ]
    if made.generation:
        full, extracted = made.generation[FULL], made.generation[EXTRACTED]
        rows.append(_mebibytes("peak while generating, MiB", full.peak_bytes, extracted.peak_bytes))
        first, second = full.tokens_per_second, extracted.tokens_per_second
        label = "generated tokens a second"
        rows.append((label, f"{first:,.1f}", f"{second:,.1f}", f"{second / first:.3f}"))
    return rows


def loss_rows(made: Export, *, with_intervals: bool) -> list[Row]:
    """By domain: the full model's, the extracted one's, how much higher the second is, and where
    there is one that of the dense model trained on it alone."""
    shown = _long if with_intervals else _short
    rows: list[Row] = []
    for domain, losses in made.losses.items():
        difference = "-"
        if losses.extracted is not None:
            difference = f"{losses.extracted.nats - losses.full.nats:+.3f}"
        is_removed = any(is_under(domain, node) for node in made.removed_domains)
        removed = " (removed)" if is_removed else ""
        row = (domain + removed, shown(losses.full), shown(losses.extracted), difference)
        rows.append((*row, shown(losses.alone)) if made.alone else row)
    return rows


def table_text(made: Export) -> str:
    """The rows in columns."""
    rows: list[Row] = [("", FULL, EXTRACTED, "ratio"), *cost_rows(made)]
    if made.losses:
        head = ("held-out loss, nats a token", FULL, EXTRACTED, "difference")
        rows.append((*head, _ALONE) if made.alone else head)
        rows += [("  " + row[0], *row[1:]) for row in loss_rows(made, with_intervals=False)]
    columns = itertools.zip_longest(*rows, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )


def remarks_of(made: Export) -> list[str]:
    """What the numbers alone do not say."""
    remarks = []
    for kind, padding in made.padding.items():
        added = sum(padding.units.padding)
        if added:
            remarks.append(
                f"padding: {added} zero {_UNITS[kind]} in all, as every layer must have "
                f"{padding.units.width}; they are {padding.parameters:,} parameters "
                f"({padding.share:.1%} of those of all {'MLPs' if kind == MLP else 'attention'}) "
                f"and {padding.flops_per_token:,} FLOPs a token"
            )
    if made.unremoved_domains:
        names = ", ".join(made.unremoved_domains)
        remarks.append(f"not removed, though not kept: {names}; no block that is off is theirs")
    if made.removed_blocks and made.extracted.parameters == made.full.parameters:
        remarks.append(
            "the extracted model is as large as the full one: some layer keeps all of its units, "
            "and the architecture has one width for all layers"
        )
    if not made.is_finished:
        remarks.append(f"the run is not finished: these are its weights after step {made.step}")
    elif made.losses and all(losses.extracted is None for losses in made.losses.values()):
        remarks.append("the run has not measured the loss of just this network")
    if made.alone:
        remarks.append(
            f"{_ALONE}: a dense model with MLPs as wide as the extracted one's, trained on the "
            f"same text of the kept domain and on no other: {made.alone}"
        )
    return remarks


def card_text(made: Export) -> str:
    """README.md: what is left, what was taken out, numbers, and how it came about."""
    kept = ", ".join(made.kept_domains)
    lines = [_FRONT, f"# {made.run}: {kept if made.keep else 'dense'}", ""]
    if made.removed_blocks:
        lines += [
            "A language model that was trained with gradient routing "
            "([Cloud et al. 2024](https://arxiv.org/abs/2410.04332)) on "
            f"{', '.join(made.domains)}, without the parts that it does not need for {kept}. "
            "They are not switched off but gone.",
            "",
            f"- kept: {kept}",
            f"- removed: {', '.join(made.removed_domains)} "
            f"(blocks {', '.join(made.removed_blocks)})",
        ]
    elif made.keep:
        lines += [
            "A language model that was trained with gradient routing on "
            f"{', '.join(made.domains)}, whole.",
            "",
            f"- kept: {kept}",
            "- removed: nothing",
        ]
    else:
        lines += [f"A language model that was trained on {kept}, without routing.", ""]
        lines += ["- removed: nothing"]
    lines += [f"- note: {remark}" for remark in remarks_of(made)]
    if made.is_core_of_removed:
        lines += [
            "",
            "What all domains share has learned from the removed ones too, so that this model may "
            "still know something of them: the losses below say how much.",
        ]
    lines += [
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("DIR")  # this folder',
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        "```",
        "",
        "## Full and extracted",
        "",
        "| | full | extracted | ratio |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in cost_rows(made)),
        "",
    ]
    if made.losses:
        lines += [
            "Held-out loss, nats a token, as the run measured it, with 95 % intervals from a "
            "bootstrap over documents:",
            "",
            f"| domain | full | extracted | difference |{f' {_ALONE} |' if made.alone else ''}",
            f"|---|---:|---:|---:|{'---:|' if made.alone else ''}",
            *(f"| {' | '.join(row)} |" for row in loss_rows(made, with_intervals=True)),
            "",
        ]
    if made.generation:
        lines += [
            f"Generation is greedy, one sequence, {NEW_TOKENS} tokens after a prompt of "
            f"{PROMPT_TOKENS}, the median of {REPEATS}, the two models in turns, float32, on "
            f"{made.environment['device']} ({made.environment['threads']} threads); its peak is "
            "what tensors hold at once, weights included.",
            "",
        ]
    if made.padding:
        lines += [
            "## Units by layer",
            "",
            "| units | full | kept | extracted |",
            "|---|---|---|---|",
        ]
        for kind, padding in made.padding.items():
            kept_units = padding.units.by_layer
            by_layer = ", ".join(map(str, kept_units))
            kept_text = str(kept_units[0]) if len(set(kept_units)) == 1 else by_layer
            lines.append(
                f"| {_UNITS[kind]} | {padding.num_units} | {kept_text} | {padding.units.width} |"
            )
        lines += ["", "Units above those that are kept are zeros.", ""]
    lines += ["## How it was made", "", "```sh"]
    lines += [line for line in (made.commands["run"], made.commands["export"]) if line]
    lines += [
        "```",
        "",
        f"Step {made.step} of the run. The logits of this checkpoint are those of the run's model "
        "with the other blocks switched off, to "
        f"{made.largest_logit_difference:.1g} on random tokens (float32).",
        "",
    ]
    lines += [f"- {name}: `{value}`" for name, value in made.fingerprints.items()]
    lines += [
        f"- {name}: {made.environment[name]}" for name in ("gr_sweep", "torch", "transformers")
    ]
    return "\n".join(lines) + "\n"


def _counted(label: str, full: int, extracted: int) -> Row:
    return label, f"{full:,}", f"{extracted:,}", f"{extracted / full:.3f}"


def _mebibytes(label: str, full: int, extracted: int) -> Row:
    return label, f"{full / 2**20:,.1f}", f"{extracted / 2**20:,.1f}", f"{extracted / full:.3f}"


def _short(loss: Loss | None) -> str:
    return "-" if loss is None else f"{loss.nats:.3f}"


def _long(loss: Loss | None) -> str:
    if loss is None or loss.interval is None:
        return _short(loss)
    return f"{loss.nats:.3f} ({loss.interval[0]:.3f} to {loss.interval[1]:.3f})"
