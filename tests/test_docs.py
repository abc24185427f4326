"""What the pages say is there: commands, links, settings, metrics, pictures; and the wheel.

`make docs` builds the pages; a link that leads nowhere or a page outside the sidebar fails it.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

from gr_sweep import config
from gr_sweep.cli import app
from gr_sweep.metrics import registry

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


# Commands


def commands(page: Path, program: str) -> list[tuple[str, ...]]:
    """Arguments of every call of a program in the shell blocks of a page."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [tuple(words[1:]) for words in found if words and words[0] == program]


def is_run(words: tuple[str, ...]) -> bool:
    """Whether the words after `gr-sweep` are those of a run: no verb, and not `--help` or alike."""
    return not (words and (words[0] in app.VERBS or words[0].startswith("--")))


CALLS = sorted({words for page in PAGES for words in commands(page, "gr-sweep")})


def first_value(word: str) -> str:
    """`a=1,2` -> `a=1`; a value with brackets or quotes stays whole."""
    return re.sub(r"^([^,\[{('\"]*),.*", r"\1", word)


README_RUNS = {tuple(map(first_value, words)) for words in commands(PAGES[0], "gr-sweep")}


@pytest.mark.parametrize(
    "words",
    [
        *sorted(filter(is_run, README_RUNS)),
        *(pytest.param(words, marks=pytest.mark.slow) for words in filter(is_run, CALLS)),
    ],
    ids=" ".join,
)
def test_every_run_of_the_pages_composes(tmp_path, monkeypatch, words):
    from gr_sweep.cli.compose import compose

    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()  # as the pages call it
    (tmp_path / "DIR" / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr("gr_sweep.cli.check_fit.check_tracking", lambda tracking: None)
    assert compose([word for word in words if word != "-m"], multirun="-m" in words).jobs


@functools.cache
def help_of(*verb: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        app.main([*verb, "--help"])
    return printed.getvalue()


def test_every_option_and_every_target_of_make_on_the_pages_exists():
    for words in [words for words in CALLS if not is_run(words)]:
        # `bench` has options by benchmark; `estimate` takes the words of a run too.
        verb = words[: 2 if words[0] == "bench" else 1] if words[0] in app.VERBS else ()
        for option in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert re.search(rf"{option}\b", help_of(*verb)), " ".join(words)
    words = {word for page in PAGES for call in commands(page, "make") for word in call}
    # The tests may run under make, which tells a second one to print folders.
    call = ["make", "--no-print-directory"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {word for word in words if "=" not in word and not word.startswith("-")} <= listed


def test_every_local_link_and_every_file_that_is_named_exists():
    for page in PAGES:
        text = page.read_text("utf-8")
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
        # A name without a dot is a formula such as L[e](d), or the licence.
        local = [link for link in links if "." in link and "://" not in link]
        assert [link for link in local if not (page.parent / link).exists()] == [], page
    for name in re.findall(
        r"`((?:gr_sweep|conf|tests)/[\w/.]+)`", (DOCS / "extend.md").read_text()
    ):
        assert (ROOT / name).exists() or "NAME" in name, name


# The reference


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


def test_every_setting_and_every_file_of_conf_is_on_the_page_with_its_meaning(reference):
    page, job = str(reference.settings_text()), config.RunConfig()
    groups = {type(getattr(job, f.name)): f"{f.name}." for f in dataclasses.fields(job)}
    prefixes = groups | {
        config.RunConfig: "",
        config.AdaptersConfig: "plan.adapters.",
        config.DomainConfig: "partition.domains.DOMAIN.",
        config.HubSource: "data.sources.SOURCE.",
    }
    for _, schema in inspect.getmembers(config, dataclasses.is_dataclass):
        meanings = reference.meanings(schema)
        for field in dataclasses.fields(schema):
            if dataclasses.is_dataclass(field.default_factory):
                continue  # its own fields are there
            head = f"::::{{confval}} {prefixes[schema]}{field.name}\n"
            [entry] = re.findall(re.escape(head) + r"(.*?)\n::::\n", page, re.S)
            assert meanings[field.name] and meanings[field.name] in entry.splitlines()
    for path in (ROOT / "conf").rglob("*/*.yaml"):
        if path.relative_to(ROOT / "conf").parts[0] != "hydra":
            assert path.read_text("utf-8").rstrip() in page


def test_every_metric_is_in_a_table_of_the_page_of_metrics(reference):
    kinds = re.findall(r"^```\{metrics\} (\w+)$", (DOCS / "metrics.md").read_text("utf-8"), re.M)
    lines = [line for kind in kinds for line in reference.metrics_text(kind).splitlines()]
    for metric in registry.METRICS:
        [line] = [line for line in lines if f"| {metric.meaning} |" in line]
        assert all(part in line for part in re.split(r"\{\w+\}", metric.key))


# Pictures and notebooks


def test_pictures_and_notebooks_are_those_of_their_scripts():
    if not (DOCS / "results").exists():
        pytest.skip("not in a source distribution")
    drawn = script(DOCS / "results" / "pictures.py").PICTURES
    page = (DOCS / "gallery.md").read_text("utf-8")
    shown = re.findall(r"^!\[[^\]]{40,}\]\(pictures/results-(\w+)\.svg\)$", page, re.M)
    assert shown == list(drawn)
    for name, draw in drawn.items():
        written = (DOCS / "pictures" / f"results-{name}.svg").read_text("utf-8")
        assert written == draw(), "python docs/results/pictures.py draws them"
    notebooks = script(DOCS / "notebooks.py")
    for path in (DOCS / "examples").glob("*.py"):
        made = notebooks.notebook(path)
        assert path.with_suffix(".ipynb").read_text("utf-8") == made, "python docs/notebooks.py"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_no_page_of_the_site_scrolls_sideways(tmp_path):
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
        browser.close()
    assert wide == []


# The project


def test_no_file_names_a_folder_of_one_machine():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    folder = re.compile(rb"(?:^|[^A-Za-z])/(?:work|root|home|farm|Users)/[a-z]", re.M)
    for path in [ROOT / name for name in listed.stdout.split("\0") if name]:
        content = path.read_bytes() if path.is_file() else b""
        assert b"\0" in content or not folder.search(content), path


@pytest.mark.slow
def test_the_wheel_holds_the_configs_and_what_the_report_needs(tmp_path):
    pytest.importorskip("hatchling", reason="the build backend; pip install -e .[dev] brings it")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"gr_sweep/{path.as_posix()}" for path in configs} <= names
    files = {path for path in (ROOT / "gr_sweep").rglob("*") if path.is_file()}
    here = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert here <= names


def test_a_family_that_is_added_as_the_guide_says_follows_the_definition(monkeypatch):
    transformers = pytest.importorskip("transformers")
    from gr_sweep.model import families
    from gr_sweep.routing.plan import RoutePlan
    from tests import reference
    from tests.model.compare import assert_follows_the_definition, route
    from tests.model.tiny import VOCAB

    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    block = r"^```python\n(# gr_sweep/model/families\.py\n.*?)^```"
    [code] = re.findall(block, (DOCS / "extend.md").read_text("utf-8"), re.M | re.S)
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
