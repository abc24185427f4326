"""What a job's model wrote (samples.json), as plain values, checked.

A file that is broken is named in the log and passed over. Knows nothing of how text is shown.
Standard library alone.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep.files import content_digest
from gr_sweep.jobdir import SAMPLES

FORMAT = 1
"""Version of samples.json that this module reads."""

KINDS = ("full", "removed", "kept")
"""Of the samples of a prompt: the full model, without a domain, with one alone."""

LENGTH = "length"
"""How a text ends: it has as many tokens as were asked for."""
END_OF_TEXT = "end_of_text"
"""The model ended it."""
NOT_FINITE = "not_finite"
"""What the model gives is not finite."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a variant of the model wrote after a prompt."""

    kind: str
    """One of `KINDS`."""
    part: str | None
    """The domain, or the node above some, that was removed or kept; None for the full model."""
    text: str
    """Any characters but surrogates; control characters too."""
    end: str
    """`LENGTH`, `END_OF_TEXT` or `NOT_FINITE`."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The beginning of a held-out document, and what follows it."""

    domain: str
    document: str
    """Hash of the document's text, as in the tables of losses: equal for the same document in other
    jobs."""
    prompt: str
    reference: str
    """How the document goes on."""
    samples: tuple[Sample, ...]
    """The full model's first, then those without and with each domain."""


def read_samples(folder: Path, digest: str | None = None) -> list[Prompt]:
    """The samples in a job's folder, in the order of its domains; none where it has none, or none
    that can be read.

    Args:
        digest: what the summary's "files" say of the file, if anything.
    """
    path = folder / SAMPLES
    if not path.is_file():
        return []
    try:
        if digest is not None and content_digest(path) != digest:
            raise ValueError("its checksum is another")
        return _prompts(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("%s cannot be read: %s", path, said)
        return []


def _prompts(content: Any) -> list[Prompt]:
    if content["format"] != FORMAT:
        raise ValueError(f"it has format {content['format']!r}; this version reads {FORMAT}")
    return [
        Prompt(
            domain=_text(prompt, "domain"),
            document=_text(prompt, "document"),
            prompt=_text(prompt, "prompt"),
            reference=_text(prompt, "reference"),
            samples=tuple(_sample(sample) for sample in _list(prompt, "samples")),
        )
        for prompt in _list(content, "prompts")
    ]


def _sample(content: Any) -> Sample:
    kind = _one_of(content, "kind", KINDS)
    return Sample(
        kind=kind,
        part=None if kind == "full" else _text(content, "part"),
        text=_text(content, "text"),
        end=_one_of(content, "end", (LENGTH, END_OF_TEXT, NOT_FINITE)),
    )


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(content[name], list):
        raise TypeError(f"{name!r} is no list")
    return content[name]


def _text(content: Mapping[str, Any], name: str) -> str:
    if not isinstance(content[name], str):
        raise TypeError(f"{name!r} is no text")
    # JSON can say halves of a character, which cannot be written into a page.
    return content[name].encode("utf-8", "replace").decode("utf-8")


def _one_of(content: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    if content[name] not in known:
        raise ValueError(f"{name!r} is none of {', '.join(known)}")
    return str(content[name])
