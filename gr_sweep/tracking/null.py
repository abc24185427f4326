"""A tracker that keeps nothing: for a process that must not write, and for code under test."""

from collections.abc import Mapping
from typing import Any


class NullTracker:
    """Takes everything and keeps nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignores the row."""

    def cut_back(self, step: int) -> None:
        """Has no rows to cut."""

    def sync(self) -> None:
        """Has nothing to write."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Ignores the summary."""

    def fail(self, message: str) -> None:
        """Has nothing to close."""
