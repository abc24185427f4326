"""What the pages of docs/ take from the code and from results, and the guide to extend gr-sweep.

`make docs` builds the pages; a link that leads nowhere or a page outside the sidebar fails it.
"""

import dataclasses
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gr_sweep import config
from gr_sweep.metrics import registry

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SCHEMAS = [
    schema
    for _, schema in inspect.getmembers(config, dataclasses.is_dataclass)
    if schema.__module__ == config.__name__
]


def script(path: Path) -> types.ModuleType:
    """A script of docs/ as a module; it finds those beside it."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> types.ModuleType:
    """docs/reference.py, which Sphinx imports."""
    pytest.importorskip("sphinx", reason="what builds the pages; pip install -e .[dev] brings it")
    return script(DOCS / "reference.py")


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


# The gallery


def test_pictures_of_the_gallery_are_drawn_from_the_files_of_results() -> None:
    if not (DOCS / "results").exists():
        pytest.skip("not in a source distribution")
    drawn = script(DOCS / "results" / "pictures.py").PICTURES
    page = (DOCS / "gallery.md").read_text("utf-8")
    shown = re.findall(r"^!\[[^\]]{40,}\]\(pictures/results-(\w+)\.svg\)$", page, re.M)
    assert shown == list(drawn)
    for name, draw in drawn.items():
        written = (DOCS / "pictures" / f"results-{name}.svg").read_text("utf-8")
        assert written == draw(), "python docs/results/pictures.py draws them"


def test_notebooks_are_those_of_their_scripts() -> None:
    notebooks = script(DOCS / "notebooks.py")
    scripts = sorted((DOCS / "examples").glob("*.py"))
    written = sorted((DOCS / "examples").glob("*.ipynb"))
    assert [path.with_suffix(".ipynb") for path in scripts] == written
    for path in scripts:
        made = notebooks.notebook(path)
        assert path.with_suffix(".ipynb").read_text("utf-8") == made, "python docs/notebooks.py"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_no_page_of_the_site_scrolls_sideways(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="what builds the pages; pip install -e .[dev] brings it")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", DOCS, tmp_path], check=True)
    wide = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        for path in tmp_path.glob("*.html"):
            page.goto(path.as_uri())
            for width in (390, 768, 1180, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    wide.append((path.stem, width))
        page.goto((tmp_path / "gallery.html").as_uri())
        found = "[...document.querySelectorAll('#gallery img')].map((img) => img.naturalWidth > 0)"
        assert page.evaluate(found) == 5 * [True]
        browser.close()
    assert wide == []


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
