"""A small function that stands in for a job; in a module that is imported quickly."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from gr_sweep.config import Device, RunConfig, TrainConfig
from gr_sweep.errors import DataError
from gr_sweep.jobdir import SUMMARY, lock_job_dir
from gr_sweep.launch.work import WARNINGS, Work
from gr_sweep.train.signals import StopSignals

CONFIG = RunConfig(train=TrainConfig(device=Device.cpu))


def play(folder: Path, act: str = "", seconds: float = 0.0) -> None:
    """Stands for a job: locks its folder, notes its environment and times, and ends as told."""
    signals = StopSignals()
    with signals.listening(), lock_job_dir(folder):
        begun = time.time()
        (folder / "environment").write_text(json.dumps(dict(os.environ)))
        (folder / WARNINGS).write_text("no W&B\n")
        if act == "fails":
            raise DataError("x.jsonl line 3: not UTF-8")
        if act == "bug":
            raise ZeroDivisionError("a bug")
        if act == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if act.startswith("meets "):
            # Ends when so many have been there at once.
            give_up = time.monotonic() + 60
            while len(list(folder.parent.glob("*/environment"))) < int(act.split()[1]):
                assert time.monotonic() < give_up
                time.sleep(0.02)
        with signals.deferred():
            give_up = time.monotonic() + seconds
            while time.monotonic() < give_up and not signals.are_there:
                time.sleep(0.02)
            if signals.are_there:
                (folder / "saved").touch()
                signals.obey()
        (folder / "times").write_text(json.dumps([begun, time.time()]))
        (folder / SUMMARY).write_text("{}")


@dataclass(frozen=True, kw_only=True)
class Played(Work):
    act: str
    seconds: float

    def __call__(self) -> None:
        play(self.folder, self.act, self.seconds)


def works(tmp_path: Path, *acts: str, seconds: float = 0.0) -> list[Played]:
    shown: set[str] = set()
    return [
        Played(
            folder=tmp_path / f"job{number}",
            title=f"job {number}",
            config=CONFIG,
            shown=shown,
            act=act,
            seconds=seconds,
        )
        for number, act in enumerate(acts)
    ]
