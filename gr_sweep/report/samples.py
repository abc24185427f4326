"""Text that a job's model has written: samples.json as plain values."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep.files import content_digest
from gr_sweep.jobdir import SAMPLES

FORMAT = 1
"""Version of samples.json that this module reads."""

KINDS = ("full", "removed", "kept")
"""The full model, without a domain, with one domain alone."""

ENDS = ("length", "end_of_text", "not_finite")
"""Why a text ends: it has all its tokens, the model ended it, or the model diverged."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one variant of the model wrote after a prompt."""

    kind: str
    """One of `KINDS`."""
    part: str | None
    """Domain or node that was removed or kept; None for the full model."""
    text: str
    end: str
    """One of `ENDS`."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The beginning of a held-out document, and the samples that continue it."""

    domain: str
    document: str
    """Hash of the document's text, the same in other jobs."""
    prompt: str
    reference: str
    """How the document itself continues."""
    samples: tuple[Sample, ...]
    """The full model's first, then those without and with each domain."""


def read_samples(folder: Path, digest: str | None = None) -> list[Prompt]:
    """Samples of a job, in the order of its domains. Empty if there are none; a file that cannot be
    read is logged and skipped.

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
        return [_prompt(prompt) for prompt in content["prompts"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("%s cannot be read: %s", path, said)
        return []


def _prompt(content: Any) -> Prompt:
    return Prompt(
        domain=_text(content["domain"]),
        document=_text(content["document"]),
        prompt=_text(content["prompt"]),
        reference=_text(content["reference"]),
        samples=tuple(_sample(sample) for sample in content["samples"]),
    )


def _sample(content: Any) -> Sample:
    kind, end = content["kind"], content["end"]
    if kind not in KINDS or end not in ENDS:
        raise ValueError(f"a sample of kind {kind!r} that ends with {end!r}")
    part = None if kind == "full" else _text(content["part"])
    return Sample(kind=kind, part=part, text=_text(content["text"]), end=end)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    # JSON can hold half a surrogate pair, which cannot be written into a page.
    return value.encode("utf-8", "replace").decode("utf-8")
