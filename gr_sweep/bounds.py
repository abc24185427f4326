"""Checks of single values: the numbers that a setting allows, kept in the metadata of its dataclass
field, and patterns."""

import enum
import operator
import re
from dataclasses import field
from typing import Any

from gr_sweep.errors import ConfigError

_COMPARE = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


class Bounds(dict[str, float]):
    """Limits of a number, by the names of `_COMPARE`."""

    def allows(self, value: float) -> bool:
        """Whether the number is within the limits."""
        return all(_COMPARE[name](value, limit) for name, limit in self.items())

    def __str__(self) -> str:
        said = (f"{name.replace('_', ' ')} {limit}" for name, limit in self.items())
        return f"a number {' and '.join(said)}"


def bounded(default: Any, **limits: float) -> Any:
    """A dataclass field with `Bounds`, which hold for the elements of a list or dictionary too."""
    metadata = {"bounds": Bounds(limits)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def share(default: float | None) -> Any:
    """A dataclass field with a number from 0 to 1."""
    return bounded(default, at_least=0, at_most=1)


def invalid(name: str, value: Any, expected: str) -> ConfigError:
    """The error of a setting whose value is not allowed."""
    if isinstance(value, enum.Enum):
        value = value.value
    return ConfigError(f"invalid value for {name}: {value!r}; expected {expected}")


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """Compiles a rule's regular expression, which ignores case.

    Raises:
        ConfigError: it is none; the message names the setting `name`.
    """
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise invalid(name, pattern, f"a regular expression ({error})") from error
