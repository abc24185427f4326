"""Kills a process at every change that it makes to the file system, and checks what is left.

The work is done in a child that kills itself at its first change of the file system, then in one
that does at its second, and so on until one comes to its end; after each it starts again as a user
would.
"""

import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
"""Of `os`, which pathlib, shutil and tempfile call; beside what is written to a file."""


class Killing:
    """Lets so many changes happen, and kills this process before the next."""

    def __init__(self, left: int) -> None:
        self._left = left
        for name in CHANGES:
            setattr(os, name, self._counted(getattr(os, name)))
        self._plain_open = io.open
        io.open = self._open  # pathlib's
        import builtins

        builtins.open = self._open

    def _now(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def _counted(self, call: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._now()
            return call(*args, **kwargs)

        return counted

    def _open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode or "a" in mode:
            self._now()
        return self._plain_open(file, mode, *args, **kwargs)


def at_every_moment(folder: Path, begin: Callable, work: Callable, check: Callable) -> list[Any]:
    """What `check` found after every kill, and after the last, whole one. `begin` makes an empty
    folder what it is before."""
    begin(folder / "before")
    found: list[Any] = []
    while True:
        place = folder / "place"
        shutil.copytree(folder / "before", place)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                Killing(len(found))
                work(place)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        found.append(check(place))
        shutil.rmtree(place)
        if status == 0:
            return found


def checkpoint(folder: Path) -> list[Any]:
    import torch

    from gr_sweep.train.checkpoint import Checkpoints

    def made(place: Path) -> Checkpoints:
        return Checkpoints(place, keep=1, fingerprint="x")

    def value(of: float) -> dict[str, Any]:
        return {"weights": torch.full((300, 20), of), "step": torch.tensor(of)}

    def check(place: Path) -> Any:
        target = value(-1.0)
        about = made(place).load_newest(lambda _: target)
        assert about is not None
        [found] = {float(x) for tensor in target.values() for x in tensor.flatten()}
        assert about["note"] == found
        made(place).save(3, {"note": 3.0}, value(3.0))
        return [found, sorted(path.name for path in place.iterdir())]

    return at_every_moment(
        folder,
        lambda place: made(place).save(1, {"note": 1.0}, value(1.0)),
        lambda place: made(place).save(2, {"note": 2.0}, value(2.0)),
        check,
    )


def cache(folder: Path) -> list[Any]:
    import numpy as np

    from gr_sweep.data.cache import open_or_build
    from gr_sweep.data.shards import ShardWriter, open_shard

    builds = []

    def build(place: Path) -> dict[str, Any]:
        builds.append(place)
        for name in ("a", "b"):
            with ShardWriter(place, name, np.dtype(np.uint16), eot_id=7) as writer:
                writer.add(np.arange(10, 30, dtype=np.uint16), 11, 5)
        return {"vocab_size": 30}

    def check(place: Path) -> Any:
        builds.clear()
        about = open_or_build(place / "cache", build)
        assert set(about["files"]) == {"a.tokens", "a.documents", "b.tokens", "b.documents"}
        for name in ("a", "b"):
            shard = open_shard(place / "cache", name, np.dtype(np.uint16))
            assert shard.document(0).tolist() == [*range(10, 30), 7]
        return [len(builds), sorted(path.name for path in place.iterdir())]

    return at_every_moment(
        folder,
        lambda place: place.mkdir(),
        lambda place: open_or_build(place / "cache", build),
        check,
    )
