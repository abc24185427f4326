"""The pages that come from the code when the site is built: settings, command line, Python.

A directive each, so that a page says in Markdown what it is and where the code's own words go:
`{settings}` from the dataclasses of gr_sweep/config.py and the files of conf/, `{commands}` from
what `gr-sweep VERB --help` prints, `{metrics}` from gr_sweep/metrics/registry.py, `{python}` from
docstrings.
"""

import ast
import contextlib
import dataclasses
import enum
import importlib
import importlib.util
import inspect
import io
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from gr_sweep import config, errors
from gr_sweep.cli import app
from gr_sweep.cli.bench import BENCHMARKS
from gr_sweep.cli.compose import compose
from gr_sweep.cli.help import conf_dir
from gr_sweep.cli.schema import LAUNCHERS, OPTIONAL_GROUPS, OptunaConfig
from gr_sweep.config import Baseline
from gr_sweep.metrics import registry

COLUMNS = 96
"""Width of the help that is shown."""

MAX_SAID = 40
"""Characters of a value that is shown beside the file that sets it."""

_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Any: "as said below",
}
_NO_SETTING = ("_target_",)
"""Fields that are Hydra's, and nobody's to set."""


@dataclass(frozen=True)
class Setting:
    """A field of a schema."""

    name: str
    """As it is typed: plan.mlp_shared."""
    kind: str
    """Its type, for people; choices by name."""
    default: str
    """What a job has where nothing is said, as YAML."""
    meaning: str
    """The string beneath the field; empty where there is none."""
    set_by: Mapping[str, str]
    """`method=sgtm` to the value that its file sets, where that is another than the default."""


# The schemas


@cache
def meanings(schema: type) -> dict[str, str]:
    """Field to the string beneath it, which Python itself does not keep: read from the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    found = {}
    for field, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            found[field.target.id] = " ".join(text.value.split())
    return found


def kind_of(hint: Any) -> str:
    """A type in words."""
    if isinstance(hint, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        return " or ".join([*map(kind_of, options), "null"])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {_plural(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_plural(arguments[1])}"
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return " | ".join(str(member.value) for member in hint)
    if dataclasses.is_dataclass(hint):
        return "settings"
    return _WORDS[hint]


def _plural(hint: Any) -> str:
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return f"({kind_of(hint)})"
    if dataclasses.is_dataclass(hint):
        return "settings, as below"
    return {str: "texts", int: "whole numbers", float: "numbers", Any: "anything"}[hint]


def as_yaml(value: Any) -> str:
    """A value as it would be typed: null, true, [a, b]; of settings in a mapping what is not as
    their schema has it."""
    if isinstance(value, dict):
        value = {name: _changed(inner) for name, inner in value.items()}
    plain = config.to_plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
    return str(text).removesuffix("\n").removesuffix("\n...")


def _changed(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    plain = type(value)()
    names = (field.name for field in dataclasses.fields(value))
    of_names = {name: getattr(value, name) for name in names}
    return {name: inner for name, inner in of_names.items() if inner != getattr(plain, name)}


def settings_of(
    schema: type, prefix: str, values: Any, choices: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Setting]:
    """The fields of a schema, and of those within a group.

    Args:
        prefix: `plan.`.
        values: what a job has by default, an instance of the schema.
        choices: `plan=forget` to what its file says, nested.
    """
    found = []
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        value = getattr(values, field.name)
        if field.name in _NO_SETTING:
            continue
        if dataclasses.is_dataclass(value):
            if prefix:  # A group of its own is another section.
                found += settings_of(type(value), f"{prefix}{field.name}.", value)
            continue
        default = as_yaml(value)
        set_by = {
            choice: as_yaml(content[field.name])
            for choice, content in (choices or {}).items()
            if field.name in content and as_yaml(content[field.name]) != default
        }
        # A group's own name, and what is too long for a line: the files themselves follow below.
        set_by = {
            choice: said
            for choice, said in set_by.items()
            if said != choice.partition("=")[2] and len(said) <= MAX_SAID
        }
        found.append(
            Setting(
                name=prefix + field.name,
                kind=kind_of(hints[field.name]),
                default=default,
                meaning=meanings(schema).get(field.name, ""),
                set_by=set_by,
            )
        )
    return found


# The files of conf/


@dataclass(frozen=True)
class Choice:
    """A file of a group."""

    name: str
    about: str
    """First sentence of the comment at its top."""
    text: str
    """All of it."""
    values: Mapping[str, Any]


def choices_of(group: str) -> list[Choice]:
    """The files of a group of conf/, by name."""
    found = []
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        text = path.read_text("utf-8")
        top = []
        for line in text.splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                top.append(line.lstrip("# ").strip())
        about = re.split(r"(?<=\.) |: gr-sweep ", " ".join(top))[0]
        found.append(Choice(path.stem, about, text, yaml.safe_load(text) or {}))
    return found


def settings_text() -> str:
    """All settings, in MyST: a section a group."""
    job = compose([]).jobs[0].config
    grouped = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    by_group = {name: node for name, node in grouped.items() if dataclasses.is_dataclass(node)}
    every = {
        f"{group}={choice.name}": choice for group in _groups() for choice in choices_of(group)
    }

    def set_in(node: str) -> dict[str, Mapping[str, Any]]:
        """What each file says about a node, whichever group it is a file of."""
        found: dict[str, Mapping[str, Any]] = {}
        for word, choice in every.items():
            values = choice.values
            if "# @package _global_" not in choice.text:  # it fills the node of its group
                values = {word.partition("=")[0]: values}
            own = values.get(node, {})
            fixed = values.get("method", {}).get("fixes", {})
            content = {**own, **fixed.get(node, {})} if isinstance(own, dict) else {}
            if content:
                found[word] = content
        return found

    lines = ["## job", "", "What stands at the top of a config.", ""]
    lines += _described(settings_of(config.RunConfig, "", job))
    lines += _files("edges")
    for group, node in by_group.items():
        schema = type(node)
        lines += [f"## {group}", "", _sentence(schema), ""]
        lines += _described(settings_of(schema, f"{group}.", node, set_in(group)))
        for name, inner in _within(schema):
            key = f"{group}.{name}.{_entry(name)}."
            lines += [f"### {group}.{name}", "", _sentence(inner), ""]
            lines += _described(settings_of(inner, key, inner()))
        lines += _files(group)
    lines += [
        "## hydra/launcher",
        "",
        "How the jobs of a sweep are run: [clusters](scale.md).",
        "",
    ]
    for launcher, schema in LAUNCHERS.items():
        lines += [f"### hydra/launcher={launcher}", ""]
        lines += _described(settings_of(schema, "hydra.launcher.", schema()))
    lines += ["## hydra/sweeper=optuna", "", "A [search](configuration.md#search).", ""]
    lines += _described(settings_of(OptunaConfig, "hydra.sweeper.", OptunaConfig()))
    for group in OPTIONAL_GROUPS:
        lines += [f"## {group}", "", _ABOUT_OPTIONAL[group], "", *_files(group)]
    return "\n".join(lines)


_ABOUT_OPTIONAL = {
    "debug": "Short runs that show whether all works. None is chosen by default.",
    "experiment": "Whole studies: [methods](methods.md#studies). None is chosen by default.",
    "scale": "Makes a study small. None is chosen by default.",
}


def _groups() -> list[str]:
    folders = (path for path in sorted(conf_dir().iterdir()) if path.is_dir())
    return [path.name for path in folders if path.name not in ("hydra", *OPTIONAL_GROUPS)]


def _sentence(schema: type) -> str:
    return " ".join((inspect.getdoc(schema) or "").split())


def _within(schema: type) -> Iterator[tuple[str, type]]:
    """Fields that map names to settings, with the schema of those."""
    for name, hint in typing.get_type_hints(schema).items():
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            yield name, typing.get_args(hint)[1]


def _entry(name: str) -> str:
    """What stands for a name of the reader's: `partition.domains.DOMAIN`."""
    return name.removesuffix("s").upper()


def _described(settings: list[Setting]) -> list[str]:
    """A definition each."""
    lines = []
    for setting in settings:
        lines += [
            f"::::{{confval}} {setting.name}",
            f":type: {setting.kind}",
            f":default: `` {setting.default} ``",
            "",
            setting.meaning or "As sbatch takes it.",
        ]
        if setting.set_by:
            said = ", ".join(f"`{word}`: `` {value} ``" for word, value in setting.set_by.items())
            lines += ["", f"[Set by]{{.set-by}} {said}"]
        lines += ["::::", ""]
    return lines


def _files(group: str) -> list[str]:
    """A group's files: what each is for, and all of it to unfold."""
    choices = choices_of(group)
    if not choices:
        return []
    lines = [f"**Choices**, the files of `conf/{group}/`:", ""]
    for choice in choices:
        about = f" {_escaped(choice.about)}" if choice.about else ""
        lines += [
            f"<details><summary><code>{group}={choice.name}</code>{about}</summary>",
            "",
            "```yaml",
            choice.text.rstrip(),
            "```",
            "",
            "</details>",
            "",
        ]
    return lines


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# The command line


def help_of(*words: str) -> str:
    """What `gr-sweep WORDS --help` prints."""
    printed = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=str(COLUMNS), NO_COLOR="1")
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            app.main([*words, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return "\n".join(map(_wrapped, printed.getvalue().rstrip().splitlines()))


def _wrapped(line: str) -> str:
    """A line that a terminal of COLUMNS would break, broken under its last column."""
    if len(line) <= COLUMNS:
        return line
    gap = re.search(r"(?<=\S)  +(?=\S)", line)
    indent = " " * min(gap.end() if gap else len(line) - len(line.lstrip()), COLUMNS - 30)
    return textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_long_words=False)


def commands_text() -> str:
    """The command line, in MyST: a section a verb."""
    lines = ["## gr-sweep", "", *_shown(help_of())]
    for verb in app.VERBS:
        lines += [f"## gr-sweep {verb}", "", *_shown(help_of(verb))]
        if verb == "bench":
            for name in BENCHMARKS:
                lines += [f"### gr-sweep bench {name}", "", *_shown(help_of(verb, name))]
    return "\n".join(lines)


def _shown(text: str) -> list[str]:
    return ["```text", text, "```", ""]


# Metrics

_PLACEHOLDERS = {
    "domain": "<d>", "part": "<e>", "block": "<S>", "owners": "<owner set>",
    "task": "<task>", "view": "<view>", "measure": "<measure>",
}  # fmt: skip
_LETTERS = {
    Baseline.dense: "D",
    Baseline.compute: "D/8",
    Baseline.filtered: "F",
    Baseline.filtered_observed: "O",
    Baseline.alone: "A",
}
_BETTER = {1: "higher", -1: "lower", 0: ""}
_TRAINING = ("train/", "eval/", "round/", "time_s")


def metrics_text(kind: str) -> str:
    """A table of metrics, in MyST.

    Args:
        kind: `alone` (a job's own), `baselines` (against baselines), `means` or `training` (rows of
            metrics.jsonl).
    """
    while_training = [m for m in registry.METRICS if m.key.startswith(_TRAINING)]
    final = [m for m in registry.METRICS if m not in while_training]
    if kind == "means":
        lines = _table_head("key", "mean of", "over")
        for metric in final:
            if metric.mean:
                lines.append(_table_row(f"`{metric.mean}`", _key(metric), metric.over.value))
        return "\n".join(lines)
    chosen = {
        "alone": [metric for metric in final if not metric.baselines],
        "baselines": [metric for metric in final if metric.baselines],
        "training": while_training,
    }[kind]
    lines = _table_head("key", "meaning", "formula", "needs", "unit", "better")
    for metric in chosen:
        lines.append(
            _table_row(
                _key(metric),
                metric.meaning,
                metric.formula and f"`{metric.formula}`",
                ", ".join(_LETTERS[baseline] for baseline in metric.baselines),
                metric.unit,
                _BETTER[metric.direction],
            )
        )
    return "\n".join(lines)


def _key(metric: registry.Metric) -> str:
    return f"`{metric.key.format(**_PLACEHOLDERS)}`"


def _table_head(*titles: str) -> list[str]:
    return [_table_row(*titles), _table_row(*["---"] * len(titles))]


def _table_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# Python


def python_text(modules: list[str]) -> str:
    """What modules hold for others, in MyST: a section a module.

    Args:
        modules: a name, and what is shown of it: `gr_sweep.routing.plan Block Split`; without, what
            the module exports (`__all__`). One that is not there is left out.
    """
    lines = []
    for line in modules:
        name, *items = line.split()
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        public = [item for item in items or _exported(module) if not item.startswith("__")]
        lines += [f"## {name}", "", inspect.getdoc(module) or "", "", "```{eval-rst}"]
        for item in public:
            lines.append(f".. {_autodoc(getattr(module, item))}:: {name}.{item}")
        lines += ["```", ""]
    return "\n".join(lines)


def _exported(module: types.ModuleType) -> list[str]:
    """`__all__`, or without one the classes that are defined there."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    found = inspect.getmembers(module, inspect.isclass)
    own = [item for _, item in found if item.__module__ == module.__name__]
    return [item.__name__ for item in sorted(own, key=lambda item: inspect.getsourcelines(item)[1])]


def _autodoc(item: Any) -> str:
    if not inspect.isclass(item):
        return "autofunction"
    return "autoexception" if issubclass(item, Exception) else "autoclass"


# Sphinx


class Settings(SphinxDirective):
    """All settings."""

    def run(self) -> list[nodes.Node]:
        """The nodes in place of the directive."""
        self.env.note_dependency(str(inspect.getsourcefile(config)))
        return self.parse_text_to_nodes(settings_text(), allow_section_headings=True)


class Commands(SphinxDirective):
    """All of the command line."""

    def run(self) -> list[nodes.Node]:
        """The nodes in place of the directive."""
        return self.parse_text_to_nodes(commands_text(), allow_section_headings=True)


class Metrics(SphinxDirective):
    """A table of metrics; the argument is a kind of `metrics_text`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes in place of the directive."""
        self.env.note_dependency(str(inspect.getsourcefile(registry)))
        return self.parse_text_to_nodes(metrics_text(self.arguments[0]))


class Python(SphinxDirective):
    """What modules export, named a line each."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The nodes in place of the directive."""
        modules = [line.strip() for line in self.content if line.strip()]
        return self.parse_text_to_nodes(python_text(modules), allow_section_headings=True)


class AsTheyAre:
    """Keeps napoleon from the texts of attributes: what is before a colon it takes for a type."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put_away(
        self, app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]
    ) -> None:
        """Before napoleon."""
        if what in ("attribute", "data", "property"):
            self.lines, lines[:] = list(lines), []

    def put_back(
        self, app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]
    ) -> None:
        """After napoleon."""
        if what in ("attribute", "data", "property"):
            lines[:] = self.lines


def find_error(
    app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Element
) -> nodes.Node | None:
    """The place of an error that a docstring names without its module."""
    name = node.get("reftarget", "")
    if node.get("reftype") != "exc" or not hasattr(errors, name):
        return None
    domain = env.domains.python_domain
    target = f"{errors.__name__}.{name}"
    builder = app.builder
    return domain.resolve_xref(env, node["refdoc"], builder, "exc", target, node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    attributes = AsTheyAre()
    app.connect("autodoc-process-docstring", attributes.put_away, priority=100)
    app.connect("autodoc-process-docstring", attributes.put_back, priority=900)
    app.connect("missing-reference", find_error)
    app.add_directive("settings", Settings)
    app.add_directive("commands", Commands)
    app.add_directive("metrics", Metrics)
    app.add_directive("python", Python)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
