"""The words of a command line: `key=value` as Hydra reads it, completed, checked, and explained
where it is wrong.

What jobs come of them says `compose`.
"""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gr_sweep.cli.schema import DEFAULT_GROUPS, OPTIONAL_GROUPS
from gr_sweep.config import (
    RunConfig,
)
from gr_sweep.errors import ConfigError

_HYDRAS_OWN = ("hydra.overrides", "hydra.runtime", "hydra.job.num", "hydra.job.id")
"""Where Hydra writes down what it was told."""

MAX_JOBS = 100_000
"""Of a sweep: more are a slip, and would be composed for hours."""

_MERGING = "Error merging override "
"""How Hydra begins what it says of an override that does not fit."""


def completed(override: str) -> str:
    """The override as Hydra wants it typed.

    Raises:
        HydraException: it cannot be read.
    """
    return str(complete(parse([override])[0]).input_line)


def check_number(overrides: Sequence[Override]) -> None:
    """Raises ConfigError where values are none, without end, or more jobs than anybody runs."""
    number = 1
    for override in overrides:
        if not override.is_sweep_override() or not override.is_discrete_sweep():
            continue
        line, values = override.input_line, override.value()
        if isinstance(values, RangeSweep):
            start, stop, step = values.start, values.stop, values.step
            assert start is not None and stop is not None
            if step == 0 or not all(map(math.isfinite, (start, stop, step))):
                raise ConfigError(
                    f"{line} has no end; give finite numbers and a step that is not 0"
                )
            found = max(0, math.ceil((stop - start) / step))
        else:
            found = sum(1 for _ in override.sweep_iterator())
        if not found:
            raise ConfigError(f"{line} gives no value, and so no job; range(0,3) gives 0, 1 and 2")
        number *= found
    if number > MAX_JOBS:
        raise ConfigError(
            f"{number} jobs are more than the {MAX_JOBS} that a sweep may have; give fewer values"
        )


def quoted(value: str) -> str:
    """The value as Hydra's grammar reads it back: quoted, quotes and what escapes them escaped."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def parse(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """The loader knows the choices that `glob` stands for."""
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def complete(override: Override, loader: ConfigLoader | None = None) -> Override:
    """The override with the + signs that Hydra wants, so that nobody has to know them.

    Hydra closes dictionaries that a dataclass leaves open: `data.weights.code=2` needs `++`. Groups
    that the primary config names take none: `+experiment=edges`, known from elsewhere, is the same
    as without.
    """
    line = str(override.input_line)
    key = override.key_or_group
    if key in DEFAULT_GROUPS:
        return parse([line.lstrip("+")], loader)[0]
    if line[0] in "+~" or key.split(".")[0] not in typing.get_type_hints(RunConfig):
        return override
    if any(typing.get_origin(kind) is dict for kind in _types_along(key)):
        return parse(["++" + line], loader)[0]
    return override


def check_override(override: Override, loader: ConfigLoader) -> None:
    """Raises ConfigError for a setting or a choice of a group that does not exist."""
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        if key.startswith(_HYDRAS_OWN):
            raise ConfigError(f"{key} is for Hydra to write; leave it out")
        return
    if not key:
        raise ConfigError(f"cannot read {override.input_line!r}; settings are key=value")
    try:
        options = loader.get_group_options(key, ObjectType.CONFIG)
    except OSError:  # a name that is too long for a file
        options = []
    if not options:
        # The walk itself complains about a name that does not exist.
        kinds = [RunConfig, *_types_along(key)]
        if override.is_delete() and typing.get_origin(_without_none(kinds[-2])) is not dict:
            raise ConfigError(f"{override.input_line}: a setting has a value always; give another")
        return
    if override.is_delete():
        if key not in OPTIONAL_GROUPS:
            raise ConfigError(f"{override.input_line}: every job needs a choice of {key}; give one")
        return
    choices = [choice for choice in options if not choice.startswith("base_")]
    values = (
        list(override.sweep_string_iterator())
        if override.is_discrete_sweep()
        else [override.get_value_element_as_str()]
    )
    for value in values:
        if value not in choices:
            raise ConfigError(f"{key}={value} is no choice; {_allowed(value, choices)}")


def check_is_single(override: Override) -> None:
    if override.is_sweep_override():
        key = override.get_key_element()
        raise ConfigError(
            f"{override.input_line} gives several values: add -m to run a job for each, "
            f"or write a list as {key.lstrip('+')}=[...]"
        )


def _types_along(key: str) -> Iterator[Any]:
    """The types of the settings on the way down to `key`, `a.b.c`, its own type last.

    Raises:
        ConfigError: there is no such setting. Names the allowed ones.
    """
    kind: Any = RunConfig
    parts = key.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            if part not in hints:
                names = [*hints] if path else [*hints, *OPTIONAL_GROUPS]
                raise ConfigError(
                    f"{f'{path} has no setting {part!r}' if path else f'no setting {part!r}'}; "
                    f"{_allowed(part, names)}"
                )
            kind = hints[part]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            raise ConfigError(f"{path} is {_describe(kind)} and has no setting {part!r}")
        yield kind
        kind = _without_none(kind)


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        [kind] = [option for option in typing.get_args(kind) if option is not types.NoneType]
    return kind


def _describe(kind: Any) -> str:
    """A type in the words of somebody who types a value."""
    if isinstance(kind, types.UnionType):
        return f"{_describe(_without_none(kind))} or null"
    if isinstance(kind, enum.EnumMeta):
        members: list[enum.Enum] = list(kind)
        return f"one of {', '.join(str(member.value) for member in members)}"
    if typing.get_origin(kind) is list:
        [item] = typing.get_args(kind)
        if isinstance(item, enum.EnumMeta):
            return f"a list of {', '.join(str(member.value) for member in list[enum.Enum](item))}"
        return "a list such as [0,1]" if typing.get_args(kind) == (int,) else "a list such as [a,b]"
    if typing.get_origin(kind) is dict:
        item = typing.get_args(kind)[1]
        if dataclasses.is_dataclass(item):
            return f"a mapping such as {{a:{{{dataclasses.fields(item)[0].name}:...}}}}"
        return "a mapping such as {a:1,b:2}"
    if dataclasses.is_dataclass(kind):
        return f"a group of settings ({', '.join(item.name for item in dataclasses.fields(kind))})"
    return {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Any: "a number, or one a domain as in {code:0.1,*:0}",
    }[kind]


def _allowed(given: str, names: Sequence[str]) -> str:
    """The names that would be right; the likeliest one first."""
    close = difflib.get_close_matches(given, names, n=1)
    others = ", ".join(names)
    return f"did you mean {close[0]}? Allowed: {others}" if close else f"allowed: {others}"


def _explain_group(line: str) -> str:
    """A value where there is a group of settings, or a setting of a group that is not there:
    OmegaConf adds an entry to a dictionary of dataclasses whole, not setting by setting."""
    key, _, value = line.partition("=")
    if key.split(".")[0] == "hydra":
        return f"{line} is not right; {key} is a group of settings"
    parts = key.split(".")
    kinds = list(_types_along(key))
    is_dict = [typing.get_origin(kind) is dict for kind in kinds]
    depth = is_dict.index(True) + 1 if True in is_dict else len(parts)
    if depth >= len(parts) or not (value.startswith("{") or len(parts) > depth + 1):
        return f"{line} is not right; give {_describe(kinds[-1])}"
    where, name, settings = ".".join(parts[:depth]), parts[depth], parts[depth + 1 :]
    for setting in reversed(settings):
        value = f"{{{setting}:{value}}}"
    return f"{where} has no {name} yet; add it with {where}={{{name}:{value}}}"


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line for what Hydra or OmegaConf complain about."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first_line, *others = str(cause).strip().splitlines() or [type(cause).__name__]
    if first_line.endswith(":") and others:
        first_line = f"{first_line} {others[0].strip()}"
    if isinstance(error, OverrideParseException):
        given = error.override
        if "=" not in given and not given.startswith("~"):
            return f"cannot read {given!r}; settings are key=value, for example edges=both"
        return (
            f"cannot read {given!r}; brackets and quotes must be closed, and a value with special "
            "characters needs quotes of its own: 'data.root=\"a=b\"'"
        )
    if isinstance(error, MissingConfigException):
        missing = error.missing_cfg_file or ""
        if error.options:
            group, _, choice = missing.rpartition("/")
            options = [option for option in error.options if not option.startswith("base_")]
            return f"{group}={choice} is no choice; {_allowed(choice, options)}"
        return first_line
    if "is not a subclass of" in first_line and str(error).startswith(_MERGING):
        return _explain_group(str(error).removeprefix(_MERGING).lstrip("+"))
    key = re.sub(r"\[.*", "", getattr(cause, "full_key", None) or "")
    if not key or key.split(".")[0] == "hydra":
        return f"{key}: {first_line}" if key else first_line
    if isinstance(cause, InterpolationResolutionError):
        return f"{key}: {first_line}"
    # A YAML file of the user may hold a setting that does not exist: the walk says so.
    *_, kind = _types_along(key)
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} has no value; give {_describe(kind)}"
    typed = [line for line in overrides if line.lstrip("+").split("=", 1)[0] == key]
    if typed:
        first_line = f"{typed[-1].lstrip('+')} is not right"
    return f"{first_line if typed else f'{key}: {first_line}'}; give {_describe(kind)}"
