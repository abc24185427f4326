"""What every benchmark hands out: one shape of JSON, so that machines and dates can be compared."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """What torch calls the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def record(
    benchmark: str,
    argv: Sequence[str],
    device: torch.device,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The result of a benchmark, ready for JSON.

    Args:
        benchmark: its name, as typed after `gr-sweep bench`.
        argv: what was typed after the name.
        device: where it ran.
        settings: what all rows share; units in the names.
        rows: one measurement each.
    """
    return {
        "benchmark": benchmark,
        "command": shlex.join(["gr-sweep", "bench", benchmark, *argv]),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
