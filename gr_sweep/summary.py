"""summary.json: what a finished job says, with a checksum of itself.

Whoever reads one reads it here, so that no number is taken from a file that is not as it was
written. What the summary means is not known here. Standard library alone.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gr_sweep.errors import DataError
from gr_sweep.files import content_digest, write_whole

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
"""Its name in a job's folder; a job that has one is done."""

METRICS = "metrics.jsonl"
"""Rows of a job, a line a logged step, in the same folder."""

SAMPLES = "samples.json"
"""Text that the job's model has written, in the same folder: to look at, no metric comes from
it."""

_CHECKSUM = "checksum"
# The line of the checksum comes first, and it is of every byte after it: a summary is checked
# without being parsed.
_HEAD = re.compile(rb'\{\n "checksum": "([0-9a-f]{64})",\n')


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes the summary whole, in JSON values, under a checksum.

    Raises:
        FullDiskError: there is no room for it.
    """
    assert summary and _CHECKSUM not in summary
    rest = json.dumps(summary, indent=1).removeprefix("{\n") + "\n"
    checksum = hashlib.sha256(rest.encode()).hexdigest()
    write_whole(path, f'{{\n "{_CHECKSUM}": "{checksum}",\n{rest}')


def read_summary(path: Path) -> dict[str, Any]:
    """The summary as `write_summary` was given it; one of an older version, without a checksum, as
    it stands.

    Raises:
        DataError: it is not as it was written.
        OSError: it is not there, or the system does not let it be read.
    """
    content = path.read_bytes()
    has_checksum = _is_right(path, content)
    try:
        summary = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(summary, dict):
        raise _damaged(path, "it holds no object")
    if (summary.pop(_CHECKSUM, None) is not None) != has_checksum:
        raise _damaged(path, "its checksum is not where it was written")
    return summary


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Whether the tables that a job's metrics are made from are as the job wrote them.

    Args:
        digests: the summary's "files": `content_digest` by name; older summaries have none. That of
            `SAMPLES` is passed over: whoever shows the text looks.

    Raises:
        DataError: one is not.
        OSError: one is not there, or the system does not let it be read.
    """
    for name, digest in digests.items():
        if name != SAMPLES and content_digest(folder / name) != digest:
            raise DataError(f"{folder / name} is damaged (its checksum is another)")


def is_finished(path: Path) -> bool:
    """Whether there is a summary that can be relied on: its job is done. Quick."""
    try:
        if not _is_right(path, path.read_bytes()):
            read_summary(path)
    except (OSError, DataError):
        return False
    return True


def set_aside_damaged(path: Path) -> None:
    """Renames a summary that is not as it was written, and says so: its job is not done.

    Raises:
        DataError: the system does not let it be read.
    """
    try:
        read_summary(path)
    except FileNotFoundError:
        return
    except DataError as error:
        aside = path.with_name(f"{path.name}.unreadable")
        path.replace(aside)
        logger.warning("%s: set aside as %s, the job evaluates again", error, aside.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read now ({error}); mend that and start again") from (
            error
        )


def _is_right(path: Path, content: bytes) -> bool:
    """Whether there is a checksum, and it is that of the content."""
    head = _HEAD.match(content)
    if head is None:
        return False
    if hashlib.sha256(content[head.end() :]).hexdigest().encode() != head[1]:
        raise _damaged(path, "its checksum is another")
    return True


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged ({reason})")
