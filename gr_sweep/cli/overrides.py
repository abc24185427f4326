"""The words of a command line: `key=value` as Hydra reads them, checked against the settings that
exist, and errors of Hydra and OmegaConf put into one line.
"""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gr_sweep.cli.schema import DEFAULT_GROUPS, OPTIONAL_GROUPS
from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError

MAX_JOBS = 100_000
"""Largest number of jobs of a sweep; composing more would take hours."""

_SET_BY_HYDRA = ("hydra.overrides", "hydra.runtime", "hydra.job.num", "hydra.job.id")

MERGING = "Error merging override "
"""Prefix of Hydra's message about an override of a wrong type."""


def parse(lines: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Parses overrides and adds the + signs that Hydra wants for new keys of dictionaries.

    Groups that the primary config names need no +: `+experiment=edges`, as Hydra's documentation
    has it, is the same as without. `loader` knows the choices that `glob` selects from.
    """
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides(list(lines))
    return parser.parse_overrides([_completed(override) for override in parsed])


def _completed(override: Override) -> str:
    line, key = str(override.input_line), override.key_or_group
    if line[0] == "~" or key.split(".")[0] not in (
        *typing.get_type_hints(RunConfig),
        *DEFAULT_GROUPS,
    ):
        return line
    line = line.lstrip("+")
    if key in DEFAULT_GROUPS:
        return line
    if any(typing.get_origin(kind) is dict for kind in _types_along(key)):
        return f"++{line}"
    return line


def key_of(line: str) -> str:
    """The setting that an override sets, without + signs."""
    return line.lstrip("+~").split("=", 1)[0]


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether the setting is one of the names or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def split_at_dict(key: str) -> tuple[str, list[str]]:
    """The setting without the names of entries of a dictionary, and these names.

    `data.sources.code.path` is `data.sources` and `[code, path]`: OmegaConf adds an entry whole.
    """
    parts = key.split(".")
    for depth, kind in enumerate(_types_along(key), start=1):
        if typing.get_origin(kind) is dict:
            return ".".join(parts[:depth]), parts[depth:]
    return key, []


def quoted(value: str) -> str:
    """The value for Hydra's grammar, in quotes if it needs them."""
    if re.fullmatch(r"[\w./-]*[a-zA-Z/][\w./-]*", value, re.ASCII):
        return value
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'


def check(override: Override, choices_of: Callable[[str], list[str]]) -> None:
    """Checks that the setting, or the choice of a group, exists.

    Args:
        override: parsed.
        choices_of: the choices of a group; empty for a name that is not a group.

    Raises:
        ConfigError: it does not exist. The message names what is allowed.
    """
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        if key.startswith(_SET_BY_HYDRA):
            raise ConfigError(f"{key} is set by Hydra; leave it out")
        return
    choices = choices_of(key)
    if override.is_delete():
        if key in OPTIONAL_GROUPS:
            return
        *_, parent, _kind = [RunConfig, RunConfig, *_types_along(key)]
        if choices or typing.get_origin(_without_none(parent)) is not dict:
            raise ConfigError(f"{override.input_line}: {key} cannot be deleted; give a value")
    elif not choices:
        list(_types_along(key))  # raises for a name that does not exist
    else:
        is_sweep = override.is_sweep_override() and override.is_discrete_sweep()
        values = (
            list(override.sweep_string_iterator())
            if is_sweep
            else [override.get_value_element_as_str()]
        )
        own = [choice for choice in choices if not choice.startswith("base_")]
        for value in values:
            if value not in own:
                raise _not_a_choice(key, value, own)


def values_of(override: Override) -> list[str]:
    """The override as `key=value` for each of its values.

    Raises:
        ConfigError: it has no value, or infinitely many.
    """
    key, line = override.get_key_element(), str(override.input_line)
    if override.is_delete():
        return [line]
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{line} is not a list of values; use {key}=1,2,3 or range(0,3)")
    values = override.value()
    if isinstance(values, RangeSweep):
        start, stop, step = values.start, values.stop, values.step
        assert start is not None and stop is not None
        if step == 0 or not all(map(math.isfinite, (start, stop, step))):
            raise ConfigError(f"{line} is endless; use finite numbers and a step other than 0")
        if (stop - start) / step > MAX_JOBS:
            raise ConfigError(f"{line} has more than {MAX_JOBS} values; use fewer")
    found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not found:
        raise ConfigError(f"{line} has no values; range(0,3), for example, has 0, 1 and 2")
    return found


def check_is_single(override: Override) -> None:
    """Raises ConfigError if the override has several values, which need -m."""
    if override.is_sweep_override():
        raise ConfigError(
            f"{override.input_line} has several values: add -m to run a job for each, or write a "
            f"list as {override.key_or_group}=[...]"
        )


def _types_along(key: str) -> Iterator[Any]:
    """The types of the settings on the way down to `key` (a.b.c), with its own type last.

    Raises:
        ConfigError: the setting does not exist. The message names the settings that do.
    """
    kind: Any = RunConfig
    parts = key.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            if part not in hints:
                names = [*hints] if path else [*hints, *OPTIONAL_GROUPS]
                where = f"{path} has no setting" if path else "no setting"
                raise ConfigError(f"{where} {part!r}; {_allowed(part, names)}")
            kind = hints[part]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            raise ConfigError(f"{path} has no settings below it; it is {_describe(kind)}")
        yield kind
        kind = _without_none(kind)


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        [kind] = [option for option in typing.get_args(kind) if option is not types.NoneType]
    return kind


def _describe(kind: Any) -> str:
    """A type, in the words of somebody who types a value."""
    if isinstance(kind, types.UnionType):
        return f"{_describe(_without_none(kind))} or null"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        example = {int: "[0,1]", float: "[0.1,0.2]", str: "[a,b]"}.get(arguments[0])
        choices = _describe(arguments[0]).removeprefix("one of ")
        return f"a list such as {example}" if example else f"a list of {choices}"
    if origin is dict:
        is_flat = arguments[1] in (float, str, Any)
        values = _describe(arguments[1])
        return "a mapping such as {a:1,b:2}" if is_flat else f"a mapping from names to {values}"
    if isinstance(kind, enum.EnumMeta):
        return f"one of {', '.join(str(member.value) for member in list[enum.Enum](kind))}"
    if dataclasses.is_dataclass(kind):
        return f"settings ({', '.join(item.name for item in dataclasses.fields(kind))})"
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return words.get(kind, "a number, or one per domain such as {code:0.1,*:0}")


def _allowed(given: str, names: Sequence[str]) -> str:
    """The names that are allowed, and the most similar one."""
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}expected one of {', '.join(names)}"


def _not_a_choice(group: str, given: str, choices: Sequence[str]) -> ConfigError:
    own = [choice for choice in choices if not choice.startswith("base_")]
    return ConfigError(f"invalid value for {group}: {given!r}; {_allowed(given, own)}")


def explain(error: Exception, lines: Sequence[str]) -> ConfigError:
    """One line about an error of Hydra or OmegaConf; `lines` are the overrides that were typed."""
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read {error.override!r}; settings are key=value, brackets and quotes must be "
            "closed, and a value with special characters needs quotes: 'data.root=\"a=b\"'"
        )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return _not_a_choice(group, choice, error.options)
    causes = [error, error.__cause__, error.__context__]
    cause = next((each for each in causes if isinstance(each, OmegaConfBaseException)), error)
    said = " ".join(str(cause).split("\n    full_key:")[0].split()) or type(cause).__name__
    key = re.sub(r"\[.*", "", getattr(cause, "full_key", None) or "")
    if str(error).startswith(MERGING) and not key:
        key = key_of(str(error).removeprefix(MERGING))
    if not key or key.split(".")[0] == "hydra" or isinstance(cause, InterpolationResolutionError):
        return ConfigError(f"{key}: {said}" if key else said)
    try:
        *_, kind = _types_along(key)
    except ConfigError as unknown:  # in a YAML file of the user
        return unknown
    if isinstance(cause, MissingMandatoryValue):
        return ConfigError(f"{key} has no value; expected {_describe(kind)}")
    typed = [line.split("=", 1)[1] for line in lines if key_of(line) == key and "=" in line]
    value = f": {typed[-1]!r}" if typed else f" ({said})"
    return ConfigError(f"invalid value for {key}{value}; expected {_describe(kind)}")
