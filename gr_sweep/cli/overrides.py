"""The words of a command line, `key=value` as Hydra reads them, and errors of Hydra and OmegaConf
in one line.
"""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Sequence
from decimal import Decimal

from hydra.core.override_parser.types import ChoiceSweep, Override
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
    if override.is_delete():
        return [line]
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    try:
        found = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    except (ValueError, ArithmeticError, HydraException) as error:
        raise ConfigError(f"{line}: {error}") from error
    if not found:
        raise ConfigError(f"{line} has no values; range(0,3), for example, has 0, 1 and 2")
    return [f"{key}={value}" for value in found]


def range_of(start: float, stop: float | None = None, step: float = 1) -> ChoiceSweep:
    """`range(start,stop,step)` of a command line, as a list of its values in decimal arithmetic.

    Hydra's own is binary, so that range(0.1,0.4,0.1) has 0.4, and `sort` gives it other values.
    """
    if step == 0:
        raise ValueError("the step of a range must not be 0")
    kind = int if all(type(given) is not float for given in (start, stop, step)) else float
    first, end = (0, start) if stop is None else (start, stop)
    begin, by = Decimal(str(first)), Decimal(str(step))
    count = min(math.ceil((Decimal(str(end)) - begin) / by), MAX_JOBS + 1)
    return ChoiceSweep(list=[kind(begin + index * by) for index in range(count)])


def explain(error: Exception, where: str = "") -> ConfigError:
    """One line about an error of Hydra or OmegaConf; it begins with `where` if the error names no
    setting."""
    if isinstance(error, OverrideParseException):
        if error.__cause__ is not None:  # of a function, such as range(0)
            return ConfigError(f"{error.override}: {error.__cause__}")
        return ConfigError(
            f"cannot read {error.override!r}; settings are key=value, brackets and quotes must be "
            "closed, and a value with special characters needs quotes: 'data.root=\"a=b\"'"
        )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        choices = [name for name in error.options if not name.startswith("base_")]
        return ConfigError(f"invalid value for {group}: {choice!r}; {_allowed(choice, choices)}")
    causes = [error, error.__cause__, error.__context__]
    cause = next((each for each in causes if isinstance(each, OmegaConfBaseException)), error)
    said = str(cause).split("\n    full_key:")[0] or type(cause).__name__
    if "is not a ListConfig" in said:
        said = "expected a list, such as [a,b]"
    elif "Cannot merge DictConfig with ListConfig" in said:
        said = "expected settings, such as {a: b}, got a list"
    elif isinstance(cause, KeyValidationError):
        said = f"{said}; put names such as null, 007, 1e5 or on in quotes"
    elif "is not a subclass of" in said:
        said = "it is a group of settings; expected one of them, such as train.steps=100"
    if (file := re.match(r"In '(.+?)': ", str(error))) and not where:
        where = f"config {file[1]}: "
    key = getattr(cause, "full_key", None) or ""
    schema = getattr(cause, "object_type", None)
    is_unknown = isinstance(cause, ConfigKeyError | ConfigAttributeError)
    if is_unknown and dataclasses.is_dataclass(schema):
        names = [item.name for item in dataclasses.fields(schema)]
        if schema is RunConfig:
            names += OPTIONAL_GROUPS
        above, _, name = key.rpartition(".")
        where = f"{above} has no setting" if above else "no setting"
        return ConfigError(f"{where} {name!r}; {_allowed(name, names)}")
    return ConfigError(f"invalid value for {key}: {said}" if key else f"{where}{said}")


def _allowed(given: str, names: Sequence[str]) -> str:
    """The names that are allowed, and the most similar one."""
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}expected one of {', '.join(names)}"
