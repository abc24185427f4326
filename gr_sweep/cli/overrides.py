"""The words of a command line, `key=value` as Hydra reads them, and what is made of them: values,
names of jobs and folders, errors of one line.
"""

import dataclasses
import difflib
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from gr_sweep.bounds import invalid
from gr_sweep.cli.schema import OPTIONAL_GROUPS
from gr_sweep.config import UNROUTED, ProcedureKind, RunConfig
from gr_sweep.errors import ConfigError
from gr_sweep.fingerprint import NO_EFFECT_ON_RESULT, fingerprint, is_below
from gr_sweep.jobdir import flatten

MAX_JOBS = 100_000
"""Largest number of jobs of a sweep; composing more would take hours."""

MAX_SLUG = 100
"""Longest slug, in characters. File systems allow 255 bytes; a hash and W&B's names are added."""

_PATHS = ("data.root", "data.paths", "model.path", "data.cache")


def key_of(line: str) -> str:
    """The setting that an override sets, without + signs."""
    return line.lstrip("+~").split("=", 1)[0]


def quoted(value: str) -> str:
    """The value for Hydra's grammar, in quotes if it needs them."""
    if re.fullmatch(r"[\w./-]*[a-zA-Z/][\w./-]*", value, re.ASCII):
        return value
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'


def values_of(override: Override) -> list[str]:
    """The override as `key=value` for each of its values; more than `MAX_JOBS` are cut off.

    Raises:
        ConfigError: it has no value.
    """
    key, line = override.get_key_element(), str(override.input_line)
    if isinstance(override.value(), IntervalSweep):
        raise ConfigError(f"{line}: an interval is for a search; add hydra/sweeper=optuna")
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    try:
        found = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    except (ValueError, ArithmeticError, HydraException) as error:
        raise ConfigError(f"{line}: {error}") from error
    if not found:
        raise ConfigError(f"{line} has no values; range(0,3), for example, has 0, 1 and 2")
    return [f"{key}={value}" for value in found]


def explain(error: Exception, where: str = "") -> ConfigError:
    """One line about an error of Hydra or OmegaConf; it begins with `where` if the error names no
    setting."""
    if isinstance(error, OverrideParseException):
        if error.__cause__ is not None:  # of a function, such as range(a)
            return ConfigError(f"{error.override}: {error.__cause__}")
        return ConfigError(
            f"cannot read {error.override!r}; settings are key=value, brackets and quotes must be "
            "closed, and a value with special characters needs quotes: 'data.root=\"a=b\"'"
        )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        choices = [name for name in error.options if not name.startswith("base_")]
        return ConfigError(f"invalid value for {group}: {choice!r}; {allowed(choice, choices)}")
    causes = [error, error.__cause__, error.__context__]
    cause = next((each for each in causes if isinstance(each, OmegaConfBaseException)), error)
    key, schema = getattr(cause, "full_key", None) or "", getattr(cause, "object_type", None)
    is_unknown = isinstance(cause, ConfigKeyError | ConfigAttributeError)
    if is_unknown and dataclasses.is_dataclass(schema):
        names = [item.name for item in dataclasses.fields(schema)]
        if schema is RunConfig:
            names += OPTIONAL_GROUPS
        above, _, name = key.rpartition(".")
        where = f"{above} has no setting" if above else "no setting"
        return ConfigError(f"{where} {name!r}; {allowed(name, names)}")
    said = str(cause).split("\n    full_key:")[0] or type(cause).__name__
    group = key or key_of(where)
    if group and "is not a subclass of" in said:  # train=5
        said = f"{group} is a group of settings; set them one by one, as in {group}.NAME=VALUE"
    return ConfigError(f"invalid value for {key}: {said}" if key else f"{where}{said}")


def allowed(given: str, names: Sequence[str]) -> str:
    """The names that are allowed, and the most similar one."""
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}expected one of {', '.join(names)}"


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


def title_of(overrides: Sequence[str]) -> str:
    """The overrides as a user types them, as the job's name for people."""
    return " ".join(line.lstrip("+") for line in overrides) or "default"


def without_paths(overrides: Sequence[str]) -> list[str]:
    """The overrides except those that say where files of this machine are."""
    return without(overrides, _PATHS)


def that_count(overrides: Sequence[str]) -> list[str]:
    """The overrides that can change a job's numbers; the others do not change a folder's name."""
    return without(overrides, NO_EFFECT_ON_RESULT)


def without_fixed(overrides: Sequence[str], typed: RunConfig) -> list[str]:
    """The overrides except those that the job's method or procedure makes meaningless."""
    is_unrouted, fixes = typed.method.name in UNROUTED, flatten(typed.method.fixes)
    fixed = ["edges", "plan", "route"] if is_unrouted else list(fixes)
    if fixes.get("procedure.name", typed.procedure.name.value) == ProcedureKind.branch.value:
        fixed += ["edges", "route"]
    kept = without(overrides, fixed)
    return [line for line in kept if f"{key_of(line)}.kind" not in fixed]


def without(overrides: Iterable[str], names: Sequence[str]) -> list[str]:
    """The overrides except those of the named settings and of the settings below them."""
    return [line for line in overrides if not is_below(key_of(line), names)]


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
