"""Checkpoints: written whole or not at all, the newest few kept."""

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from gr_sweep.errors import CheckpointError
from gr_sweep.files import whole_file

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{8})\.pt")

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What torch.load raises for a damaged file, from the zip archive to the pickle within."""


class Checkpoints:
    """The checkpoints of one job, in one folder."""

    def __init__(self, folder: Path, *, keep: int, fingerprint: str) -> None:
        """`fingerprint` says which run they belong to; others are refused."""
        self._folder = folder
        self._keep = keep
        self._fingerprint = fingerprint

    def save(self, step: int, content: dict[str, Any]) -> Path:
        """Writes a checkpoint whole or not at all, then drops the oldest ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{step:08d}.pt"
        with whole_file(path) as file:
            torch.save({"format": 1, "fingerprint": self._fingerprint, **content}, file)
        for old in self._paths()[: -self._keep]:
            old.unlink()
        return path

    def load_newest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, None where there is none.

        One that cannot be read is named in the log and renamed, and the one before it is taken.
        What a killed process left half written is removed.

        Raises:
            CheckpointError: a checkpoint of another run.
        """
        for left in self._folder.glob(".step_*.tmp"):
            left.unlink(missing_ok=True)
        for path in reversed(self._paths()):
            try:
                content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            except _UNREADABLE as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                logger.warning(
                    "checkpoint %s cannot be read (%s): set aside, trying the one before",
                    path,
                    reason,
                )
                # Out of the way of `save`, which keeps the newest by name.
                path.replace(path.with_suffix(".unreadable"))
                continue
            if content.get("fingerprint") != self._fingerprint:
                raise CheckpointError(
                    f"{path} belongs to another run (config or data differ); "
                    "remove the folder or use another"
                )
            return content
        return None

    def _paths(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
