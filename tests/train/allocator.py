"""What torch's profiler sees of the CPU's allocator: a measurement that knows nothing of ours."""

import gc
from collections.abc import Callable

import torch


def allocator_peak(run: Callable[[], None]) -> int:
    """The most bytes that were allocated and not yet freed, over those from before."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [
        (event.start_ns(), place, event.nbytes())
        for place, event in enumerate(profile.profiler.kineto_results.events())
        if event.name() == "[memory]"
    ]
    present = peak = 0
    for *_, num_bytes in sorted(events):
        present += num_bytes
        peak = max(peak, present)
    return peak
