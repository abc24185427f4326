"""What the pages of docs/ take from the code, and the guide to extend gr-sweep.

`make docs` builds the pages; a link that leads nowhere or a page outside the sidebar fails it.
"""

import dataclasses
import importlib.util
import inspect
import re
import sys
import types
from pathlib import Path

import pytest

from gr_sweep import config
from gr_sweep.metrics import registry

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

SCHEMAS = [
    schema
    for _, schema in inspect.getmembers(config, dataclasses.is_dataclass)
    if schema.__module__ == config.__name__
]


@pytest.fixture(scope="module")
def reference() -> types.ModuleType:
    """docs/reference.py, which Sphinx imports."""
    pytest.importorskip("sphinx", reason="what builds the pages; pip install -e .[dev] brings it")
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings_page(reference: types.ModuleType) -> str:
    """The settings as the site has them."""
    return str(reference.settings_text())


# The reference


def test_every_field_of_every_schema_is_on_the_page_with_its_meaning(
    reference: types.ModuleType, settings_page: str
) -> None:
    job = config.RunConfig()
    groups = {type(getattr(job, f.name)): f.name for f in dataclasses.fields(job)}
    prefixes = {
        config.RunConfig: "",
        config.AdaptersConfig: "plan.adapters.",
        config.DomainConfig: "partition.domains.DOMAIN.",
        config.HubSource: "data.sources.SOURCE.",
    } | {group: f"{name}." for group, name in groups.items() if dataclasses.is_dataclass(group)}
    for schema in SCHEMAS:
        meanings = reference.meanings(schema)
        for field in dataclasses.fields(schema):
            if dataclasses.is_dataclass(field.default_factory):
                continue  # its own fields are there
            assert meanings[field.name], f"{schema.__name__}.{field.name} has no docstring"
            head = f"::::{{confval}} {prefixes[schema]}{field.name}\n"
            [entry] = re.findall(re.escape(head) + r"(.*?)\n::::\n", settings_page, re.S)
            assert meanings[field.name] in entry.splitlines()


def test_every_file_of_conf_is_on_the_page(settings_page: str) -> None:
    files = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*/*.yaml")}
    for path in files:
        if path.parts[0] != "hydra":
            assert f"<code>{path.parent}={path.stem}</code>" in settings_page
            assert (ROOT / "conf" / path).read_text("utf-8").rstrip() in settings_page


def test_every_metric_is_in_a_table_of_the_page_of_metrics(reference: types.ModuleType) -> None:
    page = (DOCS / "metrics.md").read_text("utf-8")
    kinds = re.findall(r"^```\{metrics\} (\w+)$", page, re.M)
    lines = [line for kind in kinds for line in reference.metrics_text(kind).splitlines()]
    for metric in registry.METRICS:
        [line] = [line for line in lines if f"| {metric.meaning} |" in line]
        static = re.split(r"\{\w+\}", metric.key)
        assert all(part in line for part in static)
    means = {metric.mean for metric in registry.METRICS if metric.mean}
    assert means == {line.split("`")[1] for line in lines if line.startswith("| `mean_")}


# The guides


def test_every_place_that_the_guide_names_exists() -> None:
    page = (DOCS / "extend.md").read_text("utf-8")
    for name in re.findall(r"`((?:gr_sweep|conf|tests)/[\w/.]+)`", page):
        assert (ROOT / name).exists() or "NAME" in name, name


def test_a_family_that_is_added_as_the_guide_says_follows_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transformers = pytest.importorskip("transformers")
    from gr_sweep.model import families
    from gr_sweep.routing.plan import RoutePlan
    from tests import reference
    from tests.model.compare import assert_follows_the_definition, route
    from tests.model.tiny import VOCAB

    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    page = (DOCS / "extend.md").read_text("utf-8")
    block = r"^```python\n(# gr_sweep/model/families\.py\n.*?)^```"
    [code] = re.findall(block, page, re.M | re.S)
    exec(code, vars(families))
    shape = transformers.Starcoder2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=32,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    model, plain = (transformers.Starcoder2ForCausalLM(shape).double().eval() for _ in range(2))
    domains = ["code", "biology", "creative"]
    plan = RoutePlan.forget(
        model.config, domains=domains, forget=["biology"], mlp_shared=0.5, attn_shared=0.25
    )
    cut = reference.Cut(
        "both", foreign_weight=0.3, foreign_core_weight=-0.5, foreign_core_rest=0.25
    )
    routed = route(model, plan, cut, 0.5)
    assert_follows_the_definition(routed, plain, cut, [{"code": 3, "biology": 2, "unlabelled": 1}])
