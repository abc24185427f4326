"""What a run is besides its weights and its optimizer: enough to go on after a stop."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class TrainState:
    """Position of a run. The data position follows from `step`: batches are a function of it
    alone."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Training tokens seen."""
    elapsed_s: float = 0.0
    """Seconds in the loop, summed over resumes."""
    train_s: float = 0.0
    """Seconds of `elapsed_s` without evaluation and checkpoints."""
    eval_s: float = 0.0
    """Seconds in evaluations: before the first step, between steps, and after the last."""
    assign_s: float = 0.0
    """Seconds of clustering, attribution and assignment between phases."""
    data_s: float = 0.0
    """Seconds of `train_s` in which the loop waited for data."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)
