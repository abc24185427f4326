"""`gr-sweep doctor`: what this machine offers, on one screen. Changes nothing, uses no network.

Broken is what keeps `gr-sweep -m edges=both,act,weight` from running; all else is a warning.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import gr_sweep
from gr_sweep.arguments import Parser
from gr_sweep.config import DataConfig, TrackingMode
from gr_sweep.data.encode import usable_cores
from gr_sweep.errors import ConfigError
from gr_sweep.launch.slurm import ask

NEEDED = (
    *("torch", "transformers", "hydra-core", "omegaconf", "wandb", "datasets", "tokenizers"),
    *("pandas", "plotly"),
)
"""Packages that nothing runs without."""

LOW_DISK_GIB = 5.0
"""Less free space is a warning: checkpoints and the token cache are large."""

_GIB = 2**30

Finding = tuple[str, str, str]
"""A mark ("ok", "--" for what is absent and not needed, "warn" or "broken"), a subject, a text."""


def main(argv: Sequence[str]) -> int:
    """Prints the screen; 1 if something is broken."""
    Parser(
        prog="gr-sweep doctor",
        description="Shows versions, devices, W&B, SLURM, the token cache and free disk space.",
    ).parse_args(argv)

    status = 0
    for mark, subject, text in findings():
        print(f"{mark:<6}  {subject:<12}  {text}")
        status = 1 if mark == "broken" else status
    return status


def findings() -> Iterator[Finding]:
    """All lines, from top to bottom."""
    yield "ok", "gr-sweep", f"{gr_sweep.__version__}, {Path(gr_sweep.__file__).parent}"
    yield "ok", "python", f"{platform.python_version()}, {platform.platform()}"
    for name in NEEDED:
        try:
            yield "ok", name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield "broken", name, f"is missing; pip install {name}"
    try:
        from gr_sweep.data.prepare import cache_folder

        yield from _devices()
        yield _wandb_login()
        yield _folder("cache", cache_folder(DataConfig()))
    except ImportError as error:
        yield "broken", "packages", f"cannot be imported: {error}"
    if shutil.which("sinfo") is None:
        yield "--", "slurm", "not installed"
    elif (partitions := ask(["sinfo", "--noheader", "--format=%P %a (%D nodes)"])) is None:
        yield "warn", "slurm", "sinfo does not answer"
    else:
        yield "ok", "slurm", ", ".join(partitions.splitlines())
    yield _folder("outputs", Path("outputs"))


def _devices() -> Iterator[Finding]:
    """The CPU, with the products of train.precision=auto, and each GPU; both with their memory."""
    import torch

    from gr_sweep.train.step import cpu_has_bfloat16

    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    products = "bfloat16" if cpu_has_bfloat16() else "float32"
    found = f"{usable_cores()} cores, {memory_gib:.0f} GiB of memory, {products} products"
    yield "ok", "processor", found
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            yield "warn", "gpu", "torch finds none, though nvidia-smi is installed"
        else:
            yield "--", "gpu", "none; jobs run on the CPU"
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if gpu.major >= 8 else "no bfloat16"
        yield "ok", f"gpu {index}", f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB, {bfloat16}"


def _wandb_login() -> Finding:
    """Where `tracking=auto` would log to. A key is not tried, which would need the network."""
    from gr_sweep.tracking.wandb import has_key, resolve_mode

    try:
        is_known, mode = has_key(), resolve_mode(TrackingMode.auto).value
    except ConfigError as error:
        return "--", "w&b", str(error)
    if not is_known:
        return "--", "w&b", f"no key, so tracking=auto is {mode}; `wandb login` adds one"
    return "ok", "w&b", f"a key is configured; tracking=auto is {mode}"


def _folder(subject: str, path: Path) -> Finding:
    """Whether a folder can be written, or made, and what is free on its disk."""
    path = path.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free_gib = shutil.disk_usage(existing).free / _GIB
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return "broken", subject, f"{path} cannot be written: {error.strerror}"
    mark = "warn" if free_gib < LOW_DISK_GIB else "ok"
    return mark, subject, f"{path}, {free_gib:.0f} GiB free"
