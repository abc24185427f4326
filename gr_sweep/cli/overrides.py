"""The words of a command line, `key=value` as Hydra reads them, and errors of Hydra and OmegaConf
in one line.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Sequence

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    KeyValidationError,
    OmegaConfBaseException,
)

from gr_sweep.cli.schema import OPTIONAL_GROUPS
from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError

MAX_JOBS = 100_000
"""Largest number of jobs of a sweep; composing more would take hours."""


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


def range_of(start: int, stop: int | None = None, step: int = 1) -> ChoiceSweep:
    """`range(start,stop,step)` of a command line, as Python has it.

    Hydra's own includes the end of some ranges of floats, and `sort` gives it other values.
    """
    found = range(start) if stop is None else range(start, stop, step)
    return ChoiceSweep(list=list(itertools.islice(found, MAX_JOBS + 1)))


def explain(error: Exception, where: str = "") -> ConfigError:
    """One line about an error of Hydra or OmegaConf; it begins with `where` if the error names no
    setting."""
    if isinstance(error, OverrideParseException):
        if error.__cause__ is not None:  # of a function, such as range(0.5)
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
    said = str(cause).split("\n    full_key:")[0] or type(cause).__name__
    if "is not a subclass of" in said:  # train=5
        group = where.partition("=")[0]
        said = f"{group} is a group of settings; set them one by one, as in {group}.NAME=VALUE"
    if isinstance(cause, KeyValidationError):
        said = f"{said}; put names such as null, 007, 1e5 or on in quotes"
    key = getattr(cause, "full_key", None) or ""
    schema = getattr(cause, "object_type", None)
    is_unknown = isinstance(cause, ConfigKeyError | ConfigAttributeError)
    if is_unknown and dataclasses.is_dataclass(schema):
        names = [item.name for item in dataclasses.fields(schema)]
        if schema is RunConfig:
            names += OPTIONAL_GROUPS
        above, _, name = key.rpartition(".")
        where = f"{above} has no setting" if above else "no setting"
        return ConfigError(f"{where} {name!r}; {allowed(name, names)}")
    return ConfigError(f"invalid value for {key}: {said}" if key else f"{where}{said}")


def allowed(given: str, names: Sequence[str]) -> str:
    """The names that are allowed, and the most similar one."""
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}expected one of {', '.join(names)}"
