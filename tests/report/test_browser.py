"""The page in a real browser: what is clicked is what is shown, with the numbers of the jobs."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import answer, read_sweep, write_report
from gr_sweep.report.sweep import Job, Sweep, over_seeds
from tests.report.conftest import write_job

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def open_page() -> Iterator[Open]:
    """Opens a page with a fresh profile; an error of its scripts or a request fails the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    errors = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(path: Path, *, width: int = 1280, **options: Any) -> "Page":
            context = browser.new_context(viewport={"width": width, "height": 1000}, **options)
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "request",
                lambda r: r.url.startswith(("file:", "data:", "blob:")) or errors.append(r.url),
            )
            page.goto(path.resolve().as_uri())
            return page

        yield open_page
        browser.close()
    assert errors == []


@pytest.fixture(scope="module")
def opened(study: Path, open_page: Open) -> "Page":
    return open_page(write_report(study))


@pytest.fixture
def page(opened: "Page") -> "Page":
    """The page of the study as a reader finds it; loaded once, because loading takes long."""
    opened.locator("#scatter .main-svg").first.wait_for(state="attached")
    opened.evaluate(
        """() => {
          if (opened !== null) closeJob();
          setFilter("");
          setAxes(...chosen);
          history.replaceState(null, "", location.pathname);
          scrollTo({ top: 0, behavior: "instant" });
        }"""
    )
    return opened


def visible_settings(page: "Page") -> set[str]:
    """The settings that the table shows."""
    rows = page.locator("#settings-table tbody:not(.group) tr:visible th")
    return {row.get_attribute("data-v") or "" for row in rows.all()}


def serious(page: "Page", part: str) -> list[str]:
    """What axe-core finds in a part of the page that is serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    found = axe.Axe().run(page, part, {"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def test_frontier_is_that_of_the_table(page: "Page", read_study: Sweep) -> None:
    found = answer.rankings(read_study)
    front = [[p.jobs[0].name for p in of.places if p.rank == 1] for of in found]
    for at, expected in enumerate(front):  # those of another ranking are drawn alone
        page.select_option("#ranking", str(at))
        drawn = page.evaluate("frontOf(scatterGroups()).map(({ jobs }) => jobs[0])")
        assert expected and {read_study.compared[at].name for at in drawn} == set(expected)
    assert page.locator("tr.front").count() == sum(map(len, front))
    page.select_option("#ranking", "0")
    # Bars of means are Student's, and labels do not lie on each other.
    groups = page.evaluate("scatterGroups()")
    [act] = [of for of in groups if of["first"]["short"] == "act"]
    jobs = [read_study.compared[at] for at in act["jobs"]]
    expected = over_seeds(jobs, lambda job: job.estimate("mean_served_removal"))
    assert expected is not None and expected.interval is not None
    assert act["intervals"][1] == pytest.approx(expected.interval, rel=1e-4)
    boxes = page.evaluate(
        "[...document.querySelectorAll('#scatter .textpoint text')].map((label) => {"
        " const { left, top, right, bottom } = label.getBoundingClientRect();"
        " return [left, top, right, bottom]; }).filter(([left, , right]) => right > left)"
    )
    assert len(boxes) > 3
    for at, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:at]:
            across = min(right, other[2]) - max(left, other[0])
            assert across < 4 or min(bottom, other[3]) - max(top, other[1]) < 4


def test_frontier_of_settings_with_other_seeds(open_page: Open, tmp_path: Path) -> None:
    for edges, seeds in {"none": (1, 2), "act": (0, 1, 2), "both": (0, 1, 2)}.items():
        for seed in seeds:
            write_job(tmp_path, edges=edges, seed=seed)
    [ranking] = answer.rankings(read_sweep(tmp_path))
    front = {place.name for place in ranking.places if place.rank == 1}
    page = open_page(write_report(tmp_path))
    drawn = page.evaluate("frontOf(scatterGroups()).map(({ first }) => first.short)")
    assert set(drawn) == front and "none" not in front


def test_seeds_fold_out(page: "Page", read_study: Sweep) -> None:
    [act] = [of for of in read_study.replicates if read_study.settings[of[0].name] == "act"]
    body = page.locator("#settings-table tbody:has(th[data-v='act'])")
    body.locator(".seeds").click()
    rows = body.locator("tr.seed")
    assert rows.count() == 2
    for row, job in zip(rows.all(), act, strict=True):
        value = job.metrics["mean_served_removal"]
        assert f"{value:.2f}".replace("-", "\N{MINUS SIGN}") in row.inner_text()
    body.locator(".seeds").click()
    assert rows.count() == 0


@pytest.mark.parametrize(
    ("line", "test"),
    [
        (
            "edges=act seed=1 foreign_dropout>=0.75",
            lambda j: [j.edges, j.seed, j.settings["route.foreign_dropout"]] == ["act", 1, 1.0],
        ),
        ('lattice plan.forget!="[biology]"', lambda job: job.kind == "lattice"),
    ],
)
def test_filter_shows_the_jobs_that_the_line_says(
    page: "Page", read_study: Sweep, line: str, test: Callable[[Job], bool]
) -> None:
    page.fill("#filter", line)
    jobs = [job for job in read_study.compared if test(job)]
    labels = {read_study.labels[job.name] for job in jobs}
    assert visible_settings(page) == {read_study.settings[job.name] for job in jobs}
    assert page.inner_text("#count").startswith(f"{len(jobs)} of {len(read_study.compared)} jobs")
    assert ("means over all seeds" in page.inner_text("#count")) == ("seed=" in line)
    points = page.evaluate("scatterGroups().flatMap(({ jobs }) => jobs)")
    assert {read_study.labels[read_study.compared[at].name] for at in points} <= labels
    curve = page.locator("#curves .plot").first
    curve.scroll_into_view_if_needed()
    curve.locator(".main-svg").first.wait_for()
    drawn = page.evaluate(
        "figureOf(document.querySelector('#curves .plot')).data"
        ".flatMap((t) => t.meta.points).filter((of) => of !== null)"
    )
    assert {read_study.labels[read_study.compared[at].name] for at in drawn} == labels
    for wrong, problem in (("nonsense=3", "no setting"), ("seed>x", "number"), ("edges=", "value")):
        page.fill("#filter", wrong)
        assert problem in page.inner_text("#count")
        assert page.locator("#settings-table tbody:not(.group):visible").count() == 14


def test_view_of_a_job_has_its_numbers(page: "Page", read_study: Sweep) -> None:
    at, job = next(
        (at, job)
        for at, job in enumerate(read_study.compared)
        if job.edges == "act" and job.kind == "peers" and job.seed == 1
    )
    page.evaluate(
        "(at) => scatterBox.emit('plotly_click', {"
        " points: [{ data: { meta: { points: [[at]] } }, pointIndex: 0 }] })",
        at,
    )
    view = page.locator("#job")
    assert job.command in view.inner_text() and job.name in view.inner_text()
    cost = job.metrics[registry.SERVED_MATRIX("code", "code")]
    assert view.locator(".heat td.own").first.inner_text() == f"+{cost:.2f}"
    view.locator(".main-svg").first.wait_for()
    curves = page.evaluate("curvesOf(opened).data.map((trace) => [trace.name, trace.x, trace.y])")
    [(_, steps, losses)] = [of for of in curves if of[0] == "code, held out"]
    key = registry.EVAL_LOSS("code")
    history = {row["step"]: row[key] for row in job.history if key in row}
    assert dict(zip(steps, losses, strict=True)) == pytest.approx(history, abs=1e-4)
    view.locator("summary", has_text="metrics").click()
    view.locator("[aria-label=metrics] tbody tr").first.wait_for()
    rows = view.locator("[aria-label=metrics] tbody tr").all_inner_texts()
    values = {key: float(of) for key, of, *_ in (row.split("\t") for row in rows)}
    assert values == pytest.approx(job.metrics, rel=1e-5)
    page.keyboard.press("Escape")
    assert view.is_hidden() and "job=" not in page.url
    label = read_study.settings[job.name]
    assert page.evaluate("document.activeElement.title") == label, "focus is on its setting"


def test_names_from_outside_stay_text(tmp_path: Path, open_page: Open) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    samples = [{"kind": "full", "part": None, "text": "one two", "end": "length"}]
    for part in ("code", "biology"):
        for kind in ("removed", "kept"):
            text = f"one <b>{kind}</b> {part}"
            samples.append({"kind": kind, "part": part, "text": text, "end": "end_of_text"})
    prompt = {"domain": "biology", "document": "b", "prompt": evil, "reference": " it ends"}
    for seed in range(2):
        job = write_job(
            tmp_path / "sweep", seed=seed, overrides=[f"job={'x' * 90}{seed}"], command=evil,
            settings={"partition.name": evil},
        )  # fmt: skip
        content = {"format": 1, "prompts": [prompt | {"samples": samples}]}
        (job / "samples.json").write_text(json.dumps(content))
    page = open_page(write_report(tmp_path / "sweep"), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "long names wrap"
    page.locator("#settings-table tbody a").first.click()
    page.locator("#job .main-svg").first.wait_for()
    for fold in page.locator("#job summary").all():
        fold.click()
    assert page.locator("img").count() == 0 and page.title().startswith("sweep")
    assert f"{evil} it ends" in page.inner_text("#job .passage")
    own = page.locator(".text-of.own")
    assert own.locator("h4").all_inner_texts() == ["without biology", "only biology"]
    assert own.first.locator("pre").inner_text() == "one <b>removed</b> biology ends here"


@pytest.mark.parametrize(
    ("scheme", "width"), [("dark", 390), pytest.param("light", 1280, marks=pytest.mark.slow)]
)
def test_page_is_legible_and_axe_finds_nothing_serious(
    edges_folder: Path, open_page: Open, scheme: str, width: int
) -> None:
    page = open_page(write_report(edges_folder), color_scheme=scheme, width=width)
    page.locator("#scatter").scroll_into_view_if_needed()  # plots out of view are not drawn
    page.locator("#scatter .point").first.wait_for(state="attached")
    ground = page.evaluate("scatterBox._fullLayout.paper_bgcolor")
    assert ground == ("#121417" if scheme == "dark" else "#fcfcfb")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off"
    assert serious(page, "html") == []
    page.locator("#settings-table tbody a").nth(2).click()
    page.locator("#job .main-svg").first.wait_for()
    for fold in page.locator("#job summary").all():
        fold.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page, "#job") == []


@pytest.mark.slow
def test_five_hundred_jobs_load_in_three_seconds(tmp_path: Path, open_page: Open) -> None:
    for seed in range(25):
        for edges in ("none", "weight", "act", "both"):
            for dropout in (0.0, 0.25, 0.5, 0.75, 1.0):
                write_job(tmp_path, seed=seed, edges=edges, foreign_dropout=dropout)
    begun = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - begun < 3
    assert path.stat().st_size < 14_000_000
    page = open_page(path)
    page.locator("#scatter .point").first.wait_for(state="attached")
    took_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took_ms < 3000
    assert page.inner_text("#count") == "all 500 jobs"
    filtering_ms = page.evaluate(
        "(() => { const begun = performance.now(); setFilter('seed=24');"
        " return performance.now() - begun; })()"
    )
    assert filtering_ms < 1000
