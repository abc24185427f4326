"""Names of jobs, sweeps and their folders, made from overrides."""

import hashlib
import re
from collections.abc import Sequence

from gr_sweep.cli.overrides import key_of
from gr_sweep.config import UNROUTED, ProcedureKind, RunConfig
from gr_sweep.fingerprint import NO_EFFECT_ON_RESULT, fingerprint, is_below
from gr_sweep.jobdir import flatten

MAX_SLUG = 100
"""Longest slug, in characters. File systems allow 255 bytes; a hash and W&B's names are added."""


def slug(overrides: Sequence[str]) -> str:
    """A readable folder name: `edges=weight,seed=1`; `default` without overrides.

    The order of the overrides does not count. Characters that are special to shells or file systems
    become `-`. A long name is cut and ends in 8 digits of a hash of the whole name.
    """
    parts = []
    for override in sorted(override.lstrip("+~") for override in overrides):
        part = re.sub(r"['\"\[\]{}]", "", override).replace(",", "+")
        parts.append(re.sub(r"[^A-Za-z0-9._=+-]+", "-", part).strip("-"))
    name = ",".join(parts)
    if len(name) > MAX_SLUG:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: MAX_SLUG - 9].rstrip(',')}-{digest}"
    return name or "default"


def name_of(config: RunConfig, overrides: Sequence[str]) -> str:
    """The name of a job's folder."""
    return f"{slug(that_count(overrides))}-{fingerprint(config)[:8]}"


def that_count(overrides: Sequence[str]) -> list[str]:
    """The overrides that can change a job's numbers; the others do not change a folder's name."""
    return [line for line in overrides if not is_below(key_of(line), NO_EFFECT_ON_RESULT)]


def without_fixed(overrides: Sequence[str], typed: RunConfig) -> list[str]:
    """The overrides except those that the job's method or procedure makes meaningless."""
    is_unrouted, fixes = typed.method.name in UNROUTED, flatten(typed.method.fixes)
    fixed = ["edges", "plan", "route"] if is_unrouted else list(fixes)
    if fixes.get("procedure.name", typed.procedure.name.value) == ProcedureKind.branch.value:
        fixed += ["edges", "route"]
    return [
        line
        for line in overrides
        if not is_below(key_of(line), fixed) and f"{key_of(line)}.kind" not in fixed
    ]


def title_of(overrides: Sequence[str]) -> str:
    """The overrides as a user types them, as the job's name for people."""
    return " ".join(line.lstrip("+") for line in overrides) or "default"
