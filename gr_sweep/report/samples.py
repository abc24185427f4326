"""Text that a job's model has written: samples.json."""

import json
import logging
from pathlib import Path
from typing import Any

from gr_sweep.files import content_digest
from gr_sweep.jobdir import SAMPLES

FORMAT = 1
"""Version of samples.json that this module reads."""

logger = logging.getLogger(__name__)


def read_samples(folder: Path, digest: str | None = None) -> list[dict[str, Any]]:
    """The prompts of samples.json, each with the beginning of a document (`domain`, `document`,
    `prompt`, `reference`) and the `samples` that continue it (`kind`, `part`, `text`, `end`).

    Empty if there is no file; one that is damaged is logged and skipped.

    Args:
        digest: expected digest of the file, from the job's summary.
    """
    path = folder / SAMPLES
    if not path.is_file():
        return []
    try:
        if digest is not None and content_digest(path) != digest:
            raise ValueError("its checksum differs from the one in summary.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']!r}; this version reads {FORMAT}")
        prompts: list[dict[str, Any]] = content["prompts"]
        return prompts
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        logger.warning("%s cannot be read: %s", path, " ".join(str(error).split()))
        return []
