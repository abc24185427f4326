"""`gr-sweep doctor`: what this machine offers, on one screen. No network, and nothing is changed.

Broken is what keeps `gr-sweep -m edges=both,act,weight` from running; all the rest is a warning.
"""

import enum
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import gr_sweep
from gr_sweep.arguments import Parser
from gr_sweep.config import DataConfig, TrackingMode
from gr_sweep.errors import ConfigError, GrSweepError

NEEDED = (
    "torch",
    "transformers",
    "hydra-core",
    "omegaconf",
    "wandb",
    "datasets",
    "tokenizers",
    "pandas",
    "plotly",
)
"""Packages whose version is shown, and without which nothing runs."""

SLURM_TIMEOUT_S = 3.0
"""How long a SLURM controller may take to answer."""

LOW_DISK_GIB = 5.0
"""Free space below this is a warning: checkpoints and the token cache are large."""

_GIB = 2**30


class Mark(enum.Enum):
    """How a finding stands."""

    ok = "[green]ok[/]"
    note = "[dim]--[/]"
    warn = "[yellow]warn[/]"
    broken = "[red]broken[/]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the screen."""

    mark: Mark
    subject: str
    found: str


def main(argv: Sequence[str]) -> int:
    """Prints the screen; the exit status is 1 where something needed is broken."""
    parser = Parser(
        prog="gr-sweep doctor",
        description="Shows versions, devices, W&B, SLURM, the token cache and free disk.",
    )
    parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    broken = False
    for finding in findings():
        table.add_row(finding.mark.value, finding.subject, finding.found)
        broken = broken or finding.mark is Mark.broken
    Console(highlight=False).print(table)
    return 1 if broken else 0


def findings() -> Iterator[Finding]:
    """Everything that is shown, from top to bottom."""
    yield Finding(Mark.ok, "gr-sweep", f"{gr_sweep.__version__}, {Path(gr_sweep.__file__).parent}")
    yield Finding(Mark.ok, "python", f"{platform.python_version()}, {platform.platform()}")
    yield from packages(NEEDED)
    yield configs()
    yield from devices()
    yield memory()
    yield wandb_login()
    yield slurm()
    yield cache()
    yield outputs(Path("outputs"))


def packages(names: Sequence[str]) -> Iterator[Finding]:
    """One line of the versions, and one for each package that is missing."""
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding(Mark.broken, "packages", f"{name} is missing; pip install {name}")
    yield Finding(Mark.ok, "packages", ", ".join(versions))


def configs() -> Finding:
    """Where the YAML files are."""
    from gr_sweep.cli.schema import conf_dir

    try:
        return Finding(Mark.ok, "configs", str(conf_dir()))
    except GrSweepError as error:
        return Finding(Mark.broken, "configs", str(error))


def devices() -> Iterator[Finding]:
    """Processor, and every GPU with its memory and whether it computes in bfloat16."""
    try:
        import torch
    except ImportError as error:
        yield Finding(Mark.broken, "torch", f"cannot be imported: {error}")
        return
    yield Finding(
        Mark.ok, "processor", f"{usable_cpus()} cores, {torch.get_num_threads()} torch threads"
    )
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            yield Finding(
                Mark.warn,
                "gpu",
                f"torch {torch.__version__} sees none, yet nvidia-smi is installed",
            )
        else:
            yield Finding(Mark.note, "gpu", "none; jobs run on the processor")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if gpu.major >= 8 else "no bfloat16"
        found = f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB, {bfloat16}"
        yield Finding(Mark.ok, f"gpu {index}", found)


def usable_cpus() -> int:
    """Cores that this process may use; in a SLURM job these are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> Finding:
    """Main memory."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page_bytes / _GIB
    return Finding(Mark.ok, "memory", f"{total:.0f} GiB")


def wandb_login() -> Finding:
    """Where `tracking=auto` would log to. A key is not tried out: that would need the network."""
    try:
        from gr_sweep.tracking.wandb import key_source, resolve_mode
    except ImportError as error:
        return Finding(Mark.broken, "w&b", f"cannot be imported: {error}")
    try:
        source = key_source()
    except ConfigError as error:
        return Finding(Mark.note, "w&b", str(error))
    mode = resolve_mode(TrackingMode.auto)
    if source is None:
        found = f"no key, so tracking=auto is {mode.value}; `wandb login` adds one"
        return Finding(Mark.note, "w&b", found)
    return Finding(Mark.ok, "w&b", f"key from {source}; tracking=auto is {mode.value}")


def slurm() -> Finding:
    """Whether a SLURM controller answers, and which partitions it has."""
    if shutil.which("sinfo") is None:
        return Finding(Mark.note, "slurm", "not installed")
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %a %D"],
            capture_output=True,
            text=True,
            timeout=SLURM_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Finding(Mark.warn, "slurm", f"no answer from sinfo within {SLURM_TIMEOUT_S:.0f} s")
    if answer.returncode != 0:
        return Finding(Mark.warn, "slurm", f"not reachable: {answer.stderr.strip()}")
    partitions = [line.split() for line in answer.stdout.splitlines()]
    found = ", ".join(f"{name} {state} ({nodes} nodes)" for name, state, nodes in partitions)
    return Finding(Mark.ok, "slurm", found or "reachable, without partitions")


def cache() -> Finding:
    """The token cache and what it holds."""
    from gr_sweep.data.prepare import cache_folder

    folder = cache_folder(DataConfig())
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return _folder("cache", folder, f"holds {num_bytes / _GIB:.2f} GiB, ")


def outputs(folder: Path) -> Finding:
    """Where jobs will be written from here."""
    return _folder("outputs", folder, "")


def _folder(subject: str, folder: Path, content: str) -> Finding:
    """Whether `folder` can be written, or made, and what is free on its disk."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_gib = shutil.disk_usage(there).free / _GIB
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(
            Mark.broken, subject, f"{folder.absolute()} cannot be written: {error.strerror}"
        )
    mark = Mark.warn if free_gib < LOW_DISK_GIB else Mark.ok
    return Finding(mark, subject, f"{folder.absolute()}, {content}{free_gib:.0f} GiB free")
