"""Which job it is: the settings, the text and the code that can change its numbers."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep.config import RunConfig, to_plain
from gr_sweep.files import content_digest

NO_EFFECT_ON_RESULT = (
    "name",
    "tracking",
    "resume",
    "baselines",
    "objective",
    "data.cache",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.mesh",
    "eval.min_documents",
    "eval.samples",
    "eval.sample_prompt_tokens",
    "eval.sample_tokens",
)
"""Settings that the fingerprint leaves out, because they do not change a job's numbers."""

_DICTIONARIES = ("paths", "sources", "weights")
"""Of the data."""
_NO_PART_IN_NUMBERS = ("bench", "cli", "export", "launch", "report", "tracking")


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a job's numbers: jobs of equal fingerprints have equal results.

    The folder of the results does not count; a path that names text (`data.root`) does.
    """

    fingerprints: dict[str, str]
    """Of the settings ("config"), the documents and the tokenizer ("text"), and the source files
    ("code")."""
    settings: dict[str, Any]
    """So that a message can name those that differ."""


def identity_of(config: RunConfig, text: str) -> Identity:
    """Identity of the job that this code runs with a resolved config on the text, of which `text`
    is the fingerprint."""
    fingerprints = {"config": fingerprint(config), "text": text, "code": code_fingerprint()}
    return Identity(fingerprints, fingerprinted_settings(config))


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether the setting is one of the names or lies below one."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def fingerprint(config: RunConfig) -> str:
    """64 hexadecimal digits that two resolved configs share if their jobs give the same numbers."""
    settings = fingerprinted_settings(config)
    for name in config.eval.tasks:
        with contextlib.suppress(OSError):  # a name that the harness knows, or refused later
            settings[f"content of {name}"] = content_digest(Path(name))
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def fingerprinted_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a resolved config that can change a job's numbers, as plain values."""
    plain: dict[str, Any] = to_plain(config)
    for name in NO_EFFECT_ON_RESULT:
        *path, last = name.split(".")
        node = plain
        for key in path:
            node = node[key]
        del node[last]
    # Rules of a partition are tried in order; the order of other dictionaries has no effect.
    for group, name in (("partition", "unlabelled"), *(("data", name) for name in _DICTIONARIES)):
        if isinstance(value := plain[group][name], dict):
            plain[group][name] = dict(sorted(value.items()))
    return plain


@functools.cache
def code_fingerprint() -> str:
    """64 hexadecimal digits of the source files that can change a job's numbers."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _NO_PART_IN_NUMBERS:
            digest.update(f"{name.as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
