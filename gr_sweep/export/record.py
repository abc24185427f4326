"""What an export is: what was kept, what it costs and what it is worth."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gr_sweep.export.losses import DomainLoss
from gr_sweep.export.measure import Cost, Generation, Padding

FULL = "full"
EXTRACTED = "extracted"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was exported, what it costs and what it is worth; the content of export.json."""

    run: str
    """The job's name."""
    step: int
    is_finished: bool
    """Whether the run had come to its end; without, there are no losses."""
    domains: list[str]
    """All that the run knows."""
    keep: list[str]
    """As typed; empty for a dense run."""
    kept_domains: list[str]
    """The uppermost nodes, where the labels of the plan are nested; so are the next two."""
    removed_domains: list[str]
    """Those that are not kept and owned a block that is gone."""
    unremoved_domains: list[str]
    """Those that are not kept and owned nothing but the core or what the kept ones own too."""
    removed_blocks: list[str]
    is_core_of_removed: bool
    """Whether the core, which is left, is owned by a removed domain too (in `forget` it is not)."""
    full: Cost
    extracted: Cost
    flops_sequence_length: int
    padding: dict[str, Padding]
    """By unit kind, "mlp" or "attn"; none where the plan splits nothing."""
    generation: dict[str, Generation]
    """By "full" and "extracted"; empty where it was not measured."""
    losses: dict[str, DomainLoss]
    """By domain, and by kept label that rounds have divided one into."""
    alone: str
    """Name of the dense run beside this one, as wide as the extracted model, that was trained on
    the kept domain alone; empty where there is none."""
    largest_logit_difference: float
    """Of the written checkpoint to the run's model with the other blocks switched off."""
    commands: dict[str, str]
    fingerprints: dict[str, str]
    """Of the run's code, config and data."""
    environment: dict[str, Any]
    """Of this export."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"format": 1, **dataclasses.asdict(self)}
