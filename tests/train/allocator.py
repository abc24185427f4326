"""What torch's profiler sees of the CPU's allocator: a measurement that knows nothing of ours."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import torch


def allocator_peak(run: Callable[[], None], trace: Path) -> int:
    """The most bytes that were allocated and not yet freed, over those from before."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    profile.export_chrome_trace(str(trace))
    events = [
        (event["ts"], place, event["args"]["Bytes"])
        for place, event in enumerate(json.loads(trace.read_text())["traceEvents"])
        if event["name"] == "[memory]"
    ]
    present = peak = 0
    for *_, num_bytes in sorted(events):
        present += num_bytes
        peak = max(peak, present)
    return peak
