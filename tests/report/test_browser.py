"""The page in a real browser: what is clicked is what is shown, with the numbers of the jobs."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import write_report
from gr_sweep.report.sweep import Job, Sweep
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

        def open_page(
            path: Path, *, address: str = "", width: int = 1280, **options: Any
        ) -> "Page":
            context = browser.new_context(viewport={"width": width, "height": 1000}, **options)
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "request",
                lambda r: r.url.startswith(("file:", "data:", "blob:")) or errors.append(r.url),
            )
            page.goto(path.resolve().as_uri() + address)
            return page

        yield open_page
        browser.close()
    assert errors == []


@pytest.fixture(scope="module")
def report(study: Path) -> Path:
    return write_report(study)


@pytest.fixture(scope="module")
def opened(report: Path, open_page: Open) -> "Page":
    return open_page(report)


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


def rows_of_scatter(page: "Page") -> list[dict[str, Any]]:
    rows = page.evaluate("scatterRows().slice(1)")
    keys = ("label", "x", "", "", "y", "", "", "is_best", "bound_x", "bound_y")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def choose(page: "Page", across: str, up: str) -> None:
    page.select_option("#axis-x", across)
    page.select_option("#axis-y", up)


def visible_jobs(page: "Page") -> set[str]:
    rows = page.locator("#compare tbody tr:visible a")
    return {row.get_attribute("title") or "" for row in rows.all()}


def saved(page: "Page", act: Callable[[], None]) -> list[list[str]]:
    with page.expect_download() as found:
        act()
    text = Path(found.value.path()).read_text(encoding="utf-8")
    return list(csv.reader(io.StringIO(text)))


def pixels_of(content: bytes) -> Any:
    """Red, green and blue of a PNG, uint8 [height, width, 3]."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read a screenshot")
    return np.asarray(image.open(io.BytesIO(content)).convert("RGB"))


def serious(page: "Page") -> list[str]:
    """What axe-core finds that is serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def test_every_plot_is_drawn_when_it_comes_into_view(page: "Page") -> None:
    boxes = page.locator("[data-plot]")
    assert boxes.count() == 2 + 3 + 3 + 1, "a setting, attacks, curves, a lattice"
    for box in boxes.all():
        box.scroll_into_view_if_needed()
        box.locator(".main-svg").first.wait_for()
        assert box.get_attribute("aria-label")


def test_scatter_has_the_numbers_of_the_jobs(page: "Page", read_study: Sweep) -> None:
    choose(page, "loss L(d)", "selectivity")
    expected = {
        read_study.labels[job.name]: (job.metrics["mean_loss"], job.metrics["mean_selectivity"])
        for job in read_study.compared
        if job.parts
    }
    found = {row["label"]: (row["x"], row["y"]) for row in rows_of_scatter(page)}
    assert found.keys() == expected.keys()
    for label, place in found.items():
        assert place == pytest.approx(expected[label], rel=1e-5)
    # Dense and filtered models have no domain to remove: they are lines where their loss is.
    lines = page.evaluate("scatterFigure(scatterBox).layout.shapes.map((line) => line.x0)")
    dense = [job.metrics["mean_loss"] for job in read_study.compared if job.kind == "dense"]
    assert any(line == pytest.approx(np.mean(dense), rel=1e-4) for line in lines)


def test_frontier_is_what_no_other_setting_beats_in_both(page: "Page", read_study: Sweep) -> None:
    names = ("compute-equivalent", "removal")
    choose(page, *names)
    axes = [page.evaluate("(id) => axes.get(id)", name) for name in names]
    centres = []
    for group in read_study.replicates:
        at = [read_study.compared.index(job) for job in group]
        pairs = [[axis["values"][i] for axis in axes] for i in at]
        is_bound = any(i in axis["capped"] for i in at for axis in axes)
        if group[0].kind == "random" or is_bound or any(None in pair for pair in pairs):
            continue  # A control, a bound or a mean of some seeds beats nothing.
        centre = np.mean(pairs, axis=0)
        centre = [min(v, axis.get("most", np.inf)) for v, axis in zip(centre, axes, strict=True)]
        centres.append((group, np.array(centre)))
    best = {
        read_study.labels[job.name]
        for group, place in centres
        for job in group
        if not any((o >= place).all() and (o > place).any() for _, o in centres)
    }
    rows = rows_of_scatter(page)
    assert best and {row["label"] for row in rows if row["is_best"]} == best
    assert page.locator(".front a").count() == len(best) / 2, "a link for each group of two seeds"
    capped = {row["label"] for row in rows if row["bound_x"] == "at most"}
    expected = {
        read_study.labels[job.name]
        for job in read_study.compared
        if job.parts and "mean_removal" in job.metrics
        and "mean_compute_equivalent" not in job.metrics
    }  # fmt: skip
    assert capped == expected


def test_axes_and_filter_stay_in_the_address(
    page: "Page", report: Path, open_page: Open, read_study: Sweep
) -> None:
    choose(page, "expert tax biology", "selectivity code")
    page.fill("#filter", "edges=act seed=1")
    assert "expert tax" in (page.text_content("#scatter .xtitle") or "")
    assert "higher is better" in (page.text_content("#scatter .ytitle") or "")
    by_label = {label: name for name, label in read_study.labels.items()}
    metrics = {job.name: job.metrics for job in read_study.jobs}
    for row in rows_of_scatter(page):
        own = metrics[by_label[row["label"]]]
        assert row["x"] == pytest.approx(own[registry.EXPERT_TAX("biology")], rel=1e-5)
        assert row["y"] == pytest.approx(own[registry.SELECTIVITY("code")], rel=1e-5)
    again = open_page(report, address="#" + page.url.partition("#")[2])
    assert again.input_value("#axis-x") == "expert tax biology"
    assert again.input_value("#filter") == "edges=act seed=1"
    assert visible_jobs(again) == visible_jobs(page)
    job = read_study.compared[5]
    again.evaluate("(name) => { location.hash = `x=loss+L(d)&job=${name}`; }", quote(job.name))
    again.locator("#job-title").wait_for()
    assert again.input_value("#axis-x") == "loss L(d)"
    assert read_study.labels[job.name] in again.inner_text("#job-title")


@pytest.mark.parametrize(
    ("line", "test"),
    [
        ("edges=act seed=1", lambda job: job.edges == "act" and job.seed == 1),
        ("foreign_dropout>=0.75", lambda job: job.settings["route.foreign_dropout"] >= 0.75),
        ('plan.forget="[biology]"', lambda job: job.settings["plan.forget"] == ["biology"]),
        ("lattice", lambda job: job.kind == "lattice"),
    ],
)
def test_filter_shows_the_jobs_that_the_line_says(
    page: "Page", read_study: Sweep, line: str, test: Callable[[Job], bool]
) -> None:
    page.fill("#filter", line)
    jobs = [job for job in read_study.compared if test(job)]
    labels = {read_study.labels[job.name] for job in jobs}
    assert visible_jobs(page) == labels
    assert page.inner_text("#count") == f"{len(jobs)} of {len(read_study.compared)} jobs"
    assert {row["label"] for row in rows_of_scatter(page)} <= labels
    cards = page.locator("#matrices .card").count()
    assert cards == min(24, len([job for job in jobs if job.parts]))


def test_line_that_cannot_be_understood_is_told_and_hides_nothing(page: "Page") -> None:
    for line, problem in (
        ("nonsense=3", "no setting “nonsense”"),
        ("seed>x", "takes a number"),
        ("edges=", "no value"),
    ):
        page.fill("#filter", line)
        assert problem in page.inner_text("#count")
        assert page.locator("#compare tbody tr:visible").count() == 28


def test_boxes_and_line_are_one_filter(page: "Page") -> None:
    page.click("#facets summary:has-text('edges')")
    page.check(".facet[open] input[value=act]")
    page.check(".facet[open] input[value=both]")
    assert page.input_value("#filter") == "edges=act,both"
    assert page.inner_text("#count").startswith("12 of")
    page.keyboard.press("Escape")
    assert page.locator(".facet[open]").count() == 0
    page.fill("#filter", "edges=weight kind=peers")
    checked = page.locator(".facet input:checked")
    assert {box.get_attribute("value") for box in checked.all()} == {"weight", "peers"}
    page.click("#clear")
    assert page.inner_text("#count") == "all 28 jobs"
    assert page.locator(".facet input:checked").count() == 0


def test_filter_leaves_hidden_jobs_out_of_curves_and_groups(
    page: "Page", read_study: Sweep
) -> None:
    curve = page.locator("#curves .plot").first
    curve.scroll_into_view_if_needed()
    curve.locator(".main-svg").first.wait_for()
    page.fill("#filter", "edges=act seed=0")
    jobs = page.evaluate(
        "figureOf(document.querySelector('#curves .plot')).data"
        ".flatMap((t) => t.meta.points).filter((of) => of !== null)"
    )
    assert {read_study.compared[at].edges for at in jobs} == {"act"}
    assert {read_study.compared[at].seed for at in jobs} == {0}
    rows = page.locator("#seeds tbody tr:visible").count()
    assert rows == len([job for job in read_study.compared if job.edges == "act"]) / 2


def test_click_on_a_point_shows_its_job(page: "Page", read_study: Sweep) -> None:
    choose(page, "loss L(d)", "selectivity")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.locator("#scatter .point").first.wait_for(state="attached")
    job = next(job for job in read_study.compared if job.edges == "both" and job.seed == 1)
    place = page.evaluate(
        """(at) => {
          const { _fullLayout: of } = scatterBox, frame = scatterBox.getBoundingClientRect();
          return [frame.x + of.margin.l + of.xaxis.l2p(across.values[at]),
                  frame.y + of.margin.t + of.yaxis.l2p(up.values[at])];
        }""",
        read_study.compared.index(job),
    )
    page.mouse.move(*place)
    page.locator("#scatter .hoverlayer text").first.wait_for()
    assert "both" in (page.locator("#scatter .hoverlayer").text_content() or "")
    page.mouse.click(*place)
    # The mean of the seeds may lie on top of one of them.
    assert "edges=both" in page.inner_text("#job-title")


def test_view_of_a_job_has_its_numbers(page: "Page", read_study: Sweep) -> None:
    at, job = next(
        (at, job)
        for at, job in enumerate(read_study.compared)
        if job.edges == "act" and job.kind == "peers" and job.seed == 1
    )
    page.locator("#compare tbody a").nth(at).click()
    view = page.locator("#job")
    assert job.command in view.inner_text() and job.name in view.inner_text()
    cost = job.metrics[registry.MATRIX("code", "code")]
    cell = view.locator(".heat td.own").first
    assert cell.inner_text().startswith(f"+{cost:.2f}")
    full = job.metrics[registry.LOSS_FULL("biology")]
    assert f"{full:.2f}" in view.locator(".heat.plain tr").nth(1).inner_text()
    view.locator(".main-svg").first.wait_for()
    curves = page.evaluate("curvesOf(opened).data.map((trace) => [trace.name, trace.x, trace.y])")
    [(_, steps, losses)] = [of for of in curves if of[0] == "code, held out"]
    key = registry.EVAL_LOSS("code")
    history = {row["step"]: row[key] for row in job.history if key in row}
    assert dict(zip(steps, losses, strict=True)) == pytest.approx(history, abs=1e-4)
    table = view.locator("[aria-label='settings that differ']").inner_text()
    assert "edges" in table and "act" in table and "both" in table and "train.lr" not in table
    view.locator("summary", has_text="metrics").click()
    rows = saved(page, view.get_by_label("save the metrics as CSV").click)
    values = {row[0]: float(row[1]) for row in rows[1:]}
    assert values == pytest.approx(job.metrics, rel=1e-5)
    page.keyboard.press("Escape")
    assert view.is_hidden() and "job=" not in page.url
    label = read_study.labels[job.name]
    assert page.evaluate("document.activeElement.title") == label, "focus is on its row"


def test_click_on_a_heading_sorts(page: "Page") -> None:
    heading = page.locator("#compare thead button", has_text="mean").nth(1)
    column = heading.evaluate("(button) => button.closest('th').cellIndex")
    values = []
    for _ in range(2):
        heading.click()
        cells = page.locator(f"#compare tbody tr > :nth-child({column + 1})").all()
        values.append([cell.get_attribute("data-v") for cell in cells])
    numbers = [[float(v) for v in found if v] for found in values]
    assert numbers[0] == sorted(numbers[0]) and numbers[1] == numbers[0][::-1]
    assert all(not found[-1] for found in values if "" in found), "what is missing comes last"


def test_tables_are_saved_as_they_are_shown(page: "Page", read_study: Sweep) -> None:
    group = page.locator("#compare .groups th", has_text="loss L")
    assert group.get_attribute("colspan") == "1"
    page.check("[data-fold=compare]")
    assert group.get_attribute("colspan") == "4"
    page.uncheck("[data-fold=compare]")
    page.fill("#filter", "edges=act seed=1")
    jobs = {job.name: job for job in read_study.compared if (job.edges, job.seed) == ("act", 1)}
    header, *rows = saved(page, page.locator("[data-save=compare]").click)
    losses = [float(row[header.index("loss L(d) mean")]) for row in rows]
    assert sorted(losses) == pytest.approx(sorted(j.metrics["mean_loss"] for j in jobs.values()))


def test_numbers_and_picture_of_a_plot_are_saved(page: "Page") -> None:
    choose(page, "loss L(d)", "selectivity")
    box = page.locator("#scatter")
    box.hover()
    header, *rows = saved(page, box.locator("[data-title*=CSV]").click)
    assert header[:2] == ["job", "mean loss L(d), nats per token"]
    assert [row[0] for row in rows] == [row["label"] for row in rows_of_scatter(page)]
    with page.expect_download() as found:
        box.locator("[data-title*=ownload]").click()
    pixels = pixels_of(Path(found.value.path()).read_bytes())
    assert pixels.shape[1] > 1000 and pixels.mean() > 230, "large, and on a light ground"


def test_names_from_outside_stay_text_on_the_page_and_in_files(
    tmp_path: Path, open_page: Open
) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    for seed, root in enumerate(("=HYPERLINK(1)", evil)):
        settings = {"data.root": root, "partition.name": evil}
        write_job(
            tmp_path / "sweep", seed=seed, overrides=[f"job{seed}"], command=evil,
            settings=settings,
        )  # fmt: skip
    page = open_page(write_report(tmp_path / "sweep"))
    rows = saved(page, page.locator("[data-save=compare]").click)
    assert [cell for row in rows for cell in row if "HYPERLINK" in cell] == ["'=HYPERLINK(1)"]
    page.locator("#compare tbody a").first.click()
    page.locator("#job .main-svg").first.wait_for()
    for fold in page.locator("#job summary").all():
        fold.click()
    assert page.locator("img").count() == 0 and page.title().startswith("sweep")


def test_texts_part_where_the_models_do(tmp_path: Path, open_page: Open) -> None:
    for edges in ("act", "both"):
        samples = [{"kind": "full", "part": None, "text": f"one two {edges}", "end": "length"}]
        for part in ("code", "biology", "creative"):
            for kind in ("removed", "kept"):
                text = f"one <b>{kind}</b> {part}"
                samples.append({"kind": kind, "part": part, "text": text, "end": "end_of_text"})
        prompts = [
            {"domain": domain, "document": domain, "prompt": f"about {domain}",
             "reference": " it ends", "samples": samples}
            for domain in ("code", "biology")
        ]  # fmt: skip
        job = write_job(tmp_path, edges=edges)
        (job / "samples.json").write_text(json.dumps({"format": 1, "prompts": prompts}))
    page = open_page(write_report(tmp_path))
    page.select_option("#prompt", "1")
    assert "about biology it ends" in page.inner_text("#prompt-text")
    texts = page.locator("#texts .job-texts")
    assert texts.count() == 2 and texts.first.locator(".text-of").count() == 7
    own = texts.first.locator(".text-of.own")
    assert own.locator("h4").all_inner_texts() == ["without biology", "only biology"]
    assert own.first.locator("pre").inner_text() == "one <b>removed</b> biology ends here"
    assert own.first.locator(".same").first.inner_text() == "one "
    page.fill("#filter", "edges=both")
    assert texts.count() == 1 and "two both" in texts.first.inner_text()
    texts.locator("a").click()
    assert page.locator("#job .passage").count() == 2, "each prompt of the job"


def test_controls_of_rounds_are_not_on_the_frontier_and_pictures_have_numbers(
    alternating: Path, open_page: Open
) -> None:
    page = open_page(write_report(alternating), width=390)
    best = {row["label"] for row in rows_of_scatter(page) if row["is_best"]}
    assert best and not any("attribution=random" in label for label in best)
    boxes = page.locator(".rounds[open] .plot")
    for box in boxes.all():
        box.scroll_into_view_if_needed()
        box.locator(".main-svg").first.wait_for()
    assert page.evaluate("rowsOf([...document.querySelectorAll('.rounds[open] .plot')][1])[0]") == [
        "row"
    ]
    header, core, *_ = page.evaluate("rowsOf(document.querySelector('.rounds[open] .plot'))")
    assert header[:3] == ["block", "owners", "mlp units"] and core[0] == "core"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert serious(page) == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_page_is_legible_and_axe_finds_nothing_serious(
    report: Path, open_page: Open, scheme: str, width: int
) -> None:
    page = open_page(report, color_scheme=scheme, width=width)
    page.locator("#scatter .point").first.wait_for(state="attached")
    page.locator("#scatter").scroll_into_view_if_needed()
    pixels = pixels_of(page.screenshot())
    assert pixels.mean() < 80 if scheme == "dark" else pixels.mean() > 200
    colours = {tuple(colour) for colour in pixels[::2, ::2].reshape(-1, 3).tolist()}
    for edges in ((0xCC, 0x79, 0xA7), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert edges in colours, "a colour of the edges is nowhere to be seen"
    fill = page.locator("#scatter .xtick text").first.evaluate("(e) => e.style.fill")
    level = np.mean([int(v) for v in re.findall(r"\d+", fill)[:3]])
    assert level > 128 if scheme == "dark" else level < 128
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off"
    assert serious(page) == []
    page.locator("#compare tbody a").nth(9).click()
    page.locator("#job .main-svg").first.wait_for()
    for fold in page.locator("#job summary").all():
        fold.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []


def test_paper_is_light_and_has_every_plot_and_no_buttons(report: Path, open_page: Open) -> None:
    page = open_page(report, color_scheme="dark")
    page.locator("#scatter .main-svg").first.wait_for()
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    colour = page.evaluate("getComputedStyle(document.body).color")
    assert np.mean([int(v) for v in re.findall(r"\d+", colour)[:3]]) < 60
    assert page.locator(".small:visible, #filters:visible").count() == 0
    undrawn = "[...document.querySelectorAll('.plot')].filter((p) => !p.querySelector('.main-svg'))"
    assert page.evaluate(f"{undrawn}.length") == 0
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_five_hundred_jobs_load_in_three_seconds(tmp_path: Path, open_page: Open) -> None:
    for seed in range(25):
        for edges in ("none", "weight", "act", "both"):
            for dropout in (0.0, 0.25, 0.5, 0.75, 1.0):
                write_job(tmp_path, seed=seed, edges=edges, foreign_dropout=dropout)
    path = write_report(tmp_path)
    assert path.stat().st_size < 12_000_000
    page = open_page(path)
    page.locator("#scatter .point").first.wait_for(state="attached")
    took_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took_ms < 3000
    assert page.inner_text("#count") == "all 500 jobs"
    cards = page.locator("#matrices .card")
    assert cards.count() == 24
    filtering_ms = page.evaluate(
        "(() => { const begun = performance.now(); applyFilter('seed=24');"
        " return performance.now() - begun; })()"
    )
    assert filtering_ms < 1000
    page.evaluate("applyFilter('')")
    page.locator("#matrices > button").click()
    assert cards.count() == 72
