"""`gr-sweep doctor`: what this machine offers, on one screen. Changes nothing, uses no network.

Broken is what keeps `gr-sweep -m edges=both,act,weight` from running; all else is a warning.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import gr_sweep
from gr_sweep.arguments import Parser
from gr_sweep.config import DataConfig, TrackingMode
from gr_sweep.errors import ConfigError, GrSweepError

NEEDED = (
    *("torch", "transformers", "hydra-core", "omegaconf", "wandb", "datasets", "tokenizers"),
    *("pandas", "plotly"),
)
"""Packages that nothing runs without."""

SLURM_TIMEOUT_S = 3.0

LOW_DISK_GIB = 5.0
"""Less free space is a warning: checkpoints and the token cache are large."""

_GIB = 2**30


class Finding(NamedTuple):
    """One line of the screen."""

    mark: str
    """"ok", "--" (absent, and not needed), "warn" or "broken"."""
    subject: str
    found: str


def main(argv: Sequence[str]) -> int:
    """Prints the screen; 1 if something is broken."""
    Parser(
        prog="gr-sweep doctor",
        description="Shows versions, devices, W&B, SLURM, the token cache and free disk space.",
    ).parse_args(argv)

    status = 0
    for mark, subject, text in findings():
        print(f"{mark:<6}  {subject:<9}  {text}")
        status = 1 if mark == "broken" else status
    return status


def findings() -> Iterator[Finding]:
    """All lines, from top to bottom."""
    from gr_sweep.cli.schema import conf_dir
    from gr_sweep.data.prepare import cache_folder

    yield Finding("ok", "gr-sweep", f"{gr_sweep.__version__}, {Path(gr_sweep.__file__).parent}")
    yield Finding("ok", "python", f"{platform.python_version()}, {platform.platform()}")
    yield from packages(NEEDED)
    try:
        yield Finding("ok", "configs", str(conf_dir()))
    except GrSweepError as error:
        yield Finding("broken", "configs", str(error))
    yield from devices()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Finding("ok", "memory", f"{memory_bytes / _GIB:.0f} GiB")
    yield wandb_login()
    yield slurm()
    cache = cache_folder(DataConfig())
    cache_bytes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    yield folder("cache", cache, f"holds {cache_bytes / _GIB:.2f} GiB, ")
    yield folder("outputs", Path("outputs"))


def packages(names: Sequence[str]) -> Iterator[Finding]:
    """A line for each package that is missing, and one with the versions of the others."""
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding("broken", "packages", f"{name} is missing; pip install {name}")
    yield Finding("ok", "packages", ", ".join(versions))


def devices() -> Iterator[Finding]:
    """The CPU, and each GPU with its memory and whether it computes in bfloat16."""
    try:
        import torch
    except ImportError as error:
        yield Finding("broken", "torch", f"cannot be imported: {error}")
        return
    # In a SLURM job fewer than the machine has.
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    yield Finding("ok", "processor", f"{cores} cores, {torch.get_num_threads()} torch threads")
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            found = f"torch {torch.__version__} finds none, though nvidia-smi is installed"
            yield Finding("warn", "gpu", found)
        else:
            yield Finding("--", "gpu", "none; jobs run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if gpu.major >= 8 else "no bfloat16"
        found = f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB, {bfloat16}"
        yield Finding("ok", f"gpu {index}", found)


def wandb_login() -> Finding:
    """Where `tracking=auto` would log to. A key is not tried, which would need the network."""
    try:
        from gr_sweep.tracking.wandb import key_source, resolve_mode
    except ImportError as error:
        return Finding("broken", "w&b", f"cannot be imported: {error}")
    try:
        source = key_source()
    except ConfigError as error:
        return Finding("--", "w&b", str(error))
    mode = resolve_mode(TrackingMode.auto).value
    if source is None:
        return Finding("--", "w&b", f"no key, so tracking=auto is {mode}; `wandb login` adds one")
    return Finding("ok", "w&b", f"key from {source}; tracking=auto is {mode}")


def slurm() -> Finding:
    """Whether a SLURM controller answers, and which partitions it has."""
    if shutil.which("sinfo") is None:
        return Finding("--", "slurm", "not installed")
    command = ["sinfo", "--noheader", "--format=%P %a %D"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding("warn", "slurm", f"no answer from sinfo within {SLURM_TIMEOUT_S:.0f} s")
    if answer.returncode != 0:
        return Finding("warn", "slurm", f"not reachable: {answer.stderr.strip()}")
    partitions = [line.split() for line in answer.stdout.splitlines()]
    found = ", ".join(f"{name} {state} ({nodes} nodes)" for name, state, nodes in partitions)
    return Finding("ok", "slurm", found or "reachable, without partitions")


def folder(subject: str, path: Path, content: str = "") -> Finding:
    """Whether a folder can be written, or made, and what is free on its disk."""
    path = path.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free_gib = shutil.disk_usage(existing).free / _GIB
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding("broken", subject, f"{path} cannot be written: {error.strerror}")
    mark = "warn" if free_gib < LOW_DISK_GIB else "ok"
    return Finding(mark, subject, f"{path}, {content}{free_gib:.0f} GiB free")
