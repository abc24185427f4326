"""Names of jobs, sweeps and their folders, made from overrides."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gr_sweep.bounds import invalid
from gr_sweep.cli.overrides import key_of
from gr_sweep.config import UNROUTED, ProcedureKind, RunConfig
from gr_sweep.fingerprint import NO_EFFECT_ON_RESULT, fingerprint, is_below
from gr_sweep.jobdir import flatten

MAX_SLUG = 100
"""Longest slug, in characters. File systems allow 255 bytes; a hash and W&B's names are added."""

_PATHS = ("data.root", "data.paths", "model.path", "data.cache")


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
        name = f"{name[: MAX_SLUG - 9].rstrip(',')}-{_digits(name)}"
    return name or "default"


def name_of(config: RunConfig, overrides: Sequence[str], taken: Mapping[str, str]) -> str:
    """The name of a job's folder: of the one that it has, else a slug and 8 digits of its hash.

    Args:
        overrides: those in which it differs from others.
        taken: from `taken_names`.
    """
    digits = fingerprint(config)[:8]
    shown = [config.name] if config.name and not overrides else that_count(overrides)
    return taken.get(digits) or f"{slug(shown)}-{digits}"


def taken_names(pattern: Path) -> dict[str, str]:
    """The folders of jobs beside `pattern`, by the 8 digits in which their names end: a job that is
    typed in another way keeps its folder. None if the pattern adds to the name, `my-{job}`."""
    if pattern.name != "{job}" or not pattern.parent.is_dir():
        return {}
    names = sorted(os.listdir(pattern.parent), reverse=True)
    return {name[-8:]: name for name in names if name[-9:-8] == "-"}


def sweep_name(given: str | None, swept: Iterable[str], fixed: Sequence[str]) -> str:
    """The name of a sweep's folder: `given`, or its experiment, or the settings that it sweeps.

    The last two end in 8 digits of a hash of the settings that are constant, if any are typed.

    Raises:
        ConfigError: `given` has no letter or digit, or is the folder of single jobs.
    """
    if given is not None:
        name = slug([given])
        if not re.search(r"[A-Za-z0-9]", name) or name == "runs":
            raise invalid("name", given, "a name with a letter or a digit, other than runs")
        return name
    studies = [line for line in fixed if key_of(line) == "experiment"]
    constant = [line for line in that_count(fixed) if line not in studies]
    name = slug(studies or ["-".join(sorted(that_count(list(swept))))])
    return f"{name}-{_digits(slug(constant))}" if constant else name


def without_paths(overrides: Sequence[str]) -> list[str]:
    """The overrides except those that say where files of this machine are."""
    return [line for line in overrides if not is_below(key_of(line), _PATHS)]


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
