"""The page in a real browser: what is clicked is what is shown, with the numbers of the jobs."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

import numpy as np
import numpy.typing as npt
import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import write_report
from gr_sweep.report.collect import Sweep, shown

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Download, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

MakeJob = Callable[..., Path]
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser: "Browser") -> Iterator[Open]:
    """Opens a page with a fresh profile; no error of its scripts is passed over."""
    contexts, errors = [], []

    def open_page(path: Path, *, address: str = "", width: int = 1280, **options: Any) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": 1000}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:", "blob:")) or errors.append(r.url),
        )
        page.goto(path.resolve().as_uri() + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def report(study: Path) -> Path:
    return write_report(study)


@pytest.fixture(scope="module")
def opened(report: Path, open_page: Open) -> "Page":
    return open_page(report)


@pytest.fixture
def page(opened: "Page") -> "Page":
    """The page of the study as one finds it; loaded once, for half of the time here would be that
    of loading it."""
    opened.locator("#scatter .main-svg").first.wait_for()
    opened.emulate_media(media="screen")
    opened.evaluate(
        """() => {
          if (panel.open) panel.close();
          for (const open of document.querySelectorAll(".tools [aria-expanded=true]")) open.click();
          filterInput.value = "";
          filterInput.dispatchEvent(new Event("input"));
          for (const made of document.querySelectorAll(".facet[open]")) made.open = false;
          [across, up] = data.chosen.map((id) => axes.get(id));
          ["x", "y"].forEach((side, at) => {
            const select = document.getElementById(`axis-${side}`);
            select.value = data.chosen[at];
            select.dispatchEvent(new Event("change"));
          });
          scrollTo(0, 0);
        }"""
    )
    opened.wait_for_timeout(100)
    return opened


def numbers_of(page: "Page") -> list[list[Any]]:
    """What the scatter draws: a row a job, label, across, up, whether on the frontier."""
    rows = page.evaluate("scatterRows().slice(1)")
    return [[row[0], row[1], row[4], row[7] == "yes"] for row in rows]


def choose(page: "Page", across: str, up: str) -> None:
    page.select_option("#axis-x", across)
    page.select_option("#axis-y", up)


def show(page: "Page", line: str) -> str:
    """Filters, and returns what the page says of it."""
    page.fill("#filter", line)
    page.wait_for_timeout(150)
    return page.inner_text("#count")


def visible_rows(page: "Page") -> list[str]:
    rows = page.locator("#compare tbody tr:visible a")
    return [row.get_attribute("title") or "" for row in rows.all()]


def saved(page: "Page", act: Callable[[], None]) -> "Download":
    with page.expect_download() as found:
        act()
    return found.value


def rows_of(download: "Download") -> list[list[str]]:
    return list(csv.reader(io.StringIO(Path(download.path()).read_text(encoding="utf-8"))))


def read_picture(content: bytes) -> npt.NDArray[np.uint8]:
    """Red, green and blue of a PNG, uint8 (height, width, 3)."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read a screenshot")
    return np.asarray(image.open(io.BytesIO(content)).convert("RGB"))


def job_named(study: Sweep, label: str) -> Any:
    [found] = [job for job in study.jobs if study.labels[job.name] == label]
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_screenshot_is_not_blank(report: Path, open_page: Open, width: int) -> None:
    page = open_page(report, width=width)
    page.locator("#scatter .point").first.wait_for(state="attached")
    page.locator("#scatter").scroll_into_view_if_needed()
    pixels = read_picture(page.screenshot())
    colours = {tuple(colour) for colour in pixels[::2, ::2].reshape(-1, 3).tolist()}
    for edges in ((0xCC, 0x79, 0xA7), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert edges in colours, "a colour of the edges is nowhere to be seen"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off"


def test_every_plot_is_drawn_when_one_comes_to_it(page: "Page") -> None:
    boxes = page.locator("[data-plot]")
    assert boxes.count() == 2 + 3 + 3 + 1, "a setting, attacks, curves, a lattice"
    for box in boxes.all():
        box.scroll_into_view_if_needed()
        box.locator(".main-svg").first.wait_for()
        assert box.get_attribute("aria-label")


def test_scatter_has_the_numbers_of_the_jobs(page: "Page", read_study: Sweep) -> None:
    choose(page, "loss L(d)", "selectivity")
    expected = {
        read_study.labels[job.name]: (job.mean_loss.value, job.mean_selectivity.value)
        for job in read_study.compared
        if job.mean_loss is not None and job.mean_selectivity is not None
    }
    found = {label: (x, y) for label, x, y, _ in numbers_of(page)}
    assert found.keys() == expected.keys()
    for label, place in found.items():
        assert place == pytest.approx(expected[label], rel=1e-5)
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_timeout(150)
    drawn = page.evaluate(
        "drawn.get(scatterBox).data.flatMap((t) => t.meta.quiet ? [] :"
        " t.x.flatMap((x, at) => t.meta.points[at].length == 1 ? [[x, t.y[at]]] : []))"
    )
    assert sorted(map(tuple, drawn)) == sorted(found.values())
    # Dense and filtered models have no parts to remove: they are lines where their loss is.
    lines = page.evaluate("drawn.get(scatterBox).layout.shapes.map((line) => line.x0)")
    dense = [job.mean_loss.value for job in read_study.compared if job.kind == "dense"]
    assert any(line == pytest.approx(np.mean(dense), rel=1e-4) for line in lines)


def test_chosen_axes_are_drawn_and_stay_in_the_address(
    page: "Page", report: Path, open_page: Open, read_study: Sweep
) -> None:
    choose(page, "expert tax biology", "selectivity code")
    assert "expert tax" in (page.text_content("#scatter .xtitle") or "")
    assert "higher is better" in (page.text_content("#scatter .ytitle") or "")
    place = {label: (x, y) for label, x, y, _ in numbers_of(page)}
    for label, (x, y) in place.items():
        job = job_named(read_study, label)
        assert x == pytest.approx(job.metrics[registry.EXPERT_TAX("biology")], rel=1e-5)
        assert y == pytest.approx(job.metrics[registry.SELECTIVITY("code")], rel=1e-5)
    again = open_page(report, address="#" + page.url.partition("#")[2])
    assert again.input_value("#axis-x") == "expert tax biology"
    assert {label: (x, y) for label, x, y, _ in numbers_of(again)} == place
    page.click("#swap")
    assert page.input_value("#axis-y") == "expert tax biology"


@pytest.mark.parametrize(
    ("across", "up", "directions"),
    [("loss L(d)", "selectivity", (-1, 1)), ("compute-equivalent", "removal", (1, 1)),
     ("selectivity code", "tax", (1, -1))],
)  # fmt: skip
def test_frontier_is_what_no_other_setting_beats_in_both(
    page: "Page", read_study: Sweep, across: str, up: str, directions: tuple[int, int]
) -> None:
    choose(page, across, up)
    axes = [page.evaluate("(id) => axes.get(id)", name) for name in (across, up)]
    centres = []
    for group in read_study.replicates:
        at = [read_study.compared.index(job) for job in group]
        pairs = [[axis["values"][i] for axis in axes] for i in at]
        is_bound = any(i in axis["capped"] for i in at for axis in axes)
        if group[0].kind == "random" or is_bound or any(None in pair for pair in pairs):
            continue  # A control, a bound or a mean of some seeds beats nothing.
        centre = np.mean(pairs, axis=0)
        centre = [min(v, axis.get("most", np.inf)) for v, axis in zip(centre, axes, strict=True)]
        centres.append((group, np.array(centre) * directions))
    best = {
        read_study.labels[job.name]
        for group, place in centres
        for job in group
        if not any((o >= place).all() and (o > place).any() for _, o in centres)
    }
    assert best
    assert {label for label, *_, is_best in numbers_of(page) if is_best} == best
    assert page.locator(".front a").count() == len(best) / 2, "a link a group of two seeds"


def test_numbers_without_a_better_side_have_no_frontier(page: "Page") -> None:
    choose(page, "route.foreign_dropout", "selectivity")
    assert not any(is_best for *_, is_best in numbers_of(page))
    assert page.locator(".front").count() == 0


def test_bound_is_no_point_of_the_frontier(
    tmp_path: Path, make_job: MakeJob, open_page: Open
) -> None:
    options = {"shift": 0.0, "num_documents": 8, "resamples": 0}
    for share in (1.0, 0.5):
        make_job(tmp_path, edges="dense", method="dense", share=share, **options)
    for part in ("code", "biology", "creative"):
        make_job(tmp_path, edges="dense", method="filtered", without=[part], **options)
    # Far above dense at half of the tokens, and most is gone; close to dense, and little is.
    make_job(tmp_path, edges="weight", **options)
    make_job(tmp_path, edges="act", **options)
    page = open_page(write_report(tmp_path))
    choose(page, "compute-equivalent", "removal")
    found = {label: (x, y, best) for label, x, y, best in numbers_of(page)}
    (worse, more, is_best), (better, less, other) = found["edges=weight"], found["edges=act"]
    assert worse == 0.5 < better and less < more, "a frontier of two, were the bound a number"
    assert (is_best, other) == (False, True)


def test_removal_that_is_out_of_all_proportion_does_not_flatten_the_others(
    tmp_path: Path, make_job: MakeJob, open_page: Open
) -> None:
    for method, without in (
        ("dense", []), *(("filtered", [part]) for part in ("code", "biology", "creative")),
    ):  # fmt: skip
        make_job(tmp_path, edges="dense", method=method, without=without, shift=0.0, resamples=0)
    make_job(tmp_path, edges="act", shift=0.0, resamples=0)
    # Nearly all of the 2.5 nats that the filtered models are above: next to nothing is left to go.
    make_job(tmp_path, edges="act", foreign_dropout=1.0, shift=2.2, separation=4, resamples=0)
    page = open_page(write_report(tmp_path))
    choose(page, "tax", "removal")
    assert page.inner_text("#scatter-notes").endswith("1 beyond the axes.")
    low, high = page.evaluate("drawn.get(scatterBox).layout.yaxis.range")
    assert -1 < low < 0 and 1 < high < 2


def test_names_of_points_cover_one_another_nowhere(page: "Page") -> None:
    sides = page.evaluate(
        """() => {
          const group = (x, y, short) => ({ x, y, first: { short } });
          const numbers = [...Array(12).keys()];
          const crowd = numbers.map((at) => group(0.5 + 0.001 * at, 0.5, "act · 0.5"));
          const apart = [group(0.1, 0.1, "act"), group(0.9, 0.9, "act")];
          return [crowd, apart].map((groups) => labelSides(groups, [0, 1], [0, 1], 1000, 340));
        }"""
    )
    # Above and below on both sides, and beside the outermost: the others have no room.
    assert 2 <= len([side for side in sides[0] if side]) <= 6
    assert sides[1] == ["top right", "top left"]


@pytest.mark.parametrize(
    ("line", "test"),
    [
        ("edges=act,both", lambda job: job.edges in ("act", "both")),
        ("edges=act seed=1", lambda job: job.edges == "act" and job.seed == 1),
        ("edges!=dense", lambda job: job.edges != "dense"),
        ("foreign_dropout>=0.75", lambda job: job.settings["route.foreign_dropout"] >= 0.75),
        ("foreign_dropout<0.50", lambda job: job.settings["route.foreign_dropout"] < 0.5),
        ("route.foreign_dropout=0.250", lambda job: job.settings["route.foreign_dropout"] == 0.25),
        ('plan.forget="[biology]"', lambda job: job.settings["plan.forget"] == ["biology"]),
        ("kind=sgtm", lambda job: job.kind == "sgtm"),
        ("lattice", lambda job: job.kind == "lattice"),
        ("train.lr=1", lambda job: False),
    ],
)
def test_filter_shows_the_jobs_that_the_line_says(
    page: "Page", read_study: Sweep, line: str, test: Callable[[Any], bool]
) -> None:
    said = show(page, line)
    expected = {read_study.labels[job.name] for job in read_study.compared if test(job)}
    assert set(visible_rows(page)) == expected
    assert said == f"{len(expected)} of {len(read_study.compared)} jobs"
    assert {label for label, *_ in numbers_of(page)} <= expected
    cards = page.locator("#matrices .card:not([hidden]) h3 a").all_inner_texts()
    assert len(cards) == len([job for job in read_study.compared if test(job) and job.parts])


def test_filter_leaves_hidden_jobs_out_of_curves_and_groups(
    page: "Page", read_study: Sweep
) -> None:
    curve = page.locator("#curves .plot").first
    curve.scroll_into_view_if_needed()
    curve.locator(".main-svg").first.wait_for()
    show(page, "edges=act seed=0")
    jobs = page.evaluate(
        "drawn.get(document.querySelector('#curves .plot')).data.flatMap((t) => t.meta.points)"
    )
    assert {read_study.compared[at].edges for at in jobs} == {"act"}
    assert {read_study.compared[at].seed for at in jobs} == {0}
    rows = page.locator("#seeds tbody tr:visible").count()
    assert rows == len({job.name for job in read_study.compared if job.edges == "act"}) / 2
    # What is a mean over seeds goes with the group, in tables and in plots.
    bars = page.locator("#sharing .plot").first
    bars.scroll_into_view_if_needed()
    bars.locator(".bars .point").first.wait_for(state="attached")


@pytest.mark.parametrize(
    ("line", "problem"),
    [("nonsense=3", "no setting “nonsense”"), ("seed>x", "takes a number"),
     ("kind>", "takes a number"), ("train.lr>0.1,5", "takes a number"), ("edges=", "no value")],
)  # fmt: skip
def test_line_that_cannot_be_understood_is_told(page: "Page", line: str, problem: str) -> None:
    assert problem in show(page, line)
    assert page.locator("#compare tbody tr:visible").count() == 28, "and hides nothing"


def test_boxes_and_line_are_one_filter(page: "Page") -> None:
    page.click("#facets summary:has-text('edges')")
    page.check(".facet[open] input[value=act]")
    page.check(".facet[open] input[value=both]")
    page.wait_for_timeout(150)
    assert page.input_value("#filter") == "edges=act,both"
    assert page.inner_text("#count").startswith("12 of")
    show(page, "edges=weight kind=peers")
    checked = page.locator(".facet input:checked")
    assert {box.get_attribute("value") for box in checked.all()} == {"weight", "peers"}
    page.click("#clear")
    page.wait_for_timeout(150)
    assert page.inner_text("#count") == "all 28 jobs"
    assert page.locator(".facet input:checked").count() == 0


def test_any_setting_can_be_filtered_by(page: "Page") -> None:
    page.select_option("#more-settings", "train.lr")
    page.click("#add-setting")
    page.check(".facet[open] input >> nth=0")
    page.wait_for_timeout(150)
    assert page.input_value("#filter").startswith("train.lr=")
    page.click("#facets summary:has-text('seed')")
    page.check(".facet[open] input[value='1']")
    page.wait_for_timeout(150)
    assert page.input_value("#filter").endswith("seed=1")
    assert page.inner_text("#count") == "14 of 28 jobs"


def test_filter_stays_in_the_address(page: "Page", report: Path, open_page: Open) -> None:
    show(page, "edges=act seed=1")
    again = open_page(report, address="#" + page.url.partition("#")[2])
    assert again.input_value("#filter") == "edges=act seed=1"
    assert visible_rows(again) == visible_rows(page)


def test_click_on_a_point_opens_its_job(page: "Page", read_study: Sweep) -> None:
    choose(page, "loss L(d)", "selectivity")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.locator("#scatter .point").first.wait_for(state="attached")
    job = next(job for job in read_study.compared if job.edges == "both" and job.seed == 1)
    at = read_study.compared.index(job)
    place = page.evaluate(
        """(at) => {
          const { _fullLayout: of } = scatterBox, frame = scatterBox.getBoundingClientRect();
          return [frame.x + of.margin.l + of.xaxis.l2p(across.values[at]),
                  frame.y + of.margin.t + of.yaxis.l2p(up.values[at])];
        }""",
        at,
    )
    page.mouse.move(*place)
    page.wait_for_timeout(200)
    hover = page.locator("#scatter .hoverlayer").text_content() or ""
    assert read_study.labels[job.name] in hover
    page.mouse.click(*place)
    page.locator("dialog[open]").wait_for()
    assert page.inner_text("#job-title").strip().endswith(read_study.labels[job.name])


def test_panel_of_a_job_has_its_numbers(page: "Page", read_study: Sweep) -> None:
    at, job = next(
        (at, job)
        for at, job in enumerate(read_study.compared)
        if job.edges == "act" and job.kind == "peers" and job.seed == 1
    )
    page.click(f"#compare a[data-open='{at}']")
    panel = page.locator("dialog[open]")
    panel.locator(".main-svg").first.wait_for()
    matrix = page.evaluate("rowsOf(document.querySelector('dialog .plot')).slice(1)")
    assert len(matrix) == 9
    for part, domain, value, low, high in matrix:
        key = registry.MATRIX(part, domain)
        assert value == pytest.approx(job.metrics[key], rel=1e-5)
        assert (low, high) == pytest.approx(job.intervals[key], rel=1e-4)
    drawn = panel.locator(".plot").first.locator(".annotation-text").all_text_contents()
    assert any(f"+{job.metrics[registry.MATRIX('code', 'code')]:.2f}" in text for text in drawn)
    text = panel.inner_text()
    assert job.name in text and job.command in text and job.environment["torch"] in text
    # What is folded is filled when it opens.
    panel.locator("summary", has_text="the whole config").click()
    panel.get_by_text("train.beta2").wait_for()
    panel.locator("summary", has_text="metrics").click()
    row = panel.locator(".numbers tr", has_text=registry.LOSS_FULL("code")).first
    row.wait_for()
    assert float(row.locator("td").nth(1).inner_text()) == pytest.approx(
        job.metrics[registry.LOSS_FULL("code")], rel=1e-5
    )


def test_panel_tells_what_differs_from_another_job(page: "Page", read_study: Sweep) -> None:
    first, second = (
        next(job for job in read_study.compared if (job.kind, job.seed) == wanted)
        for wanted in (("sgtm", 0), ("lattice", 1))
    )
    page.click(f"#compare a[data-open='{read_study.compared.index(first)}']")
    other = str(read_study.compared.index(second))
    page.select_option("dialog select", other)
    rows = [
        [cell.inner_text() for cell in row.locator("th, td").all()]
        for row in page.locator("dialog .diff tbody tr").all()
    ]
    expected = {
        name: [shown(first.settings.get(name)), shown(second.settings.get(name))]
        for name in first.settings
        if shown(first.settings.get(name)) != shown(second.settings.get(name))
    }
    found = {name: values for name, *values in rows if name != "kind"}
    assert found == expected


def test_keyboard_alone_opens_moves_and_closes(page: "Page", read_study: Sweep) -> None:
    link = page.locator("#compare tbody tr a").nth(3)
    link.focus()
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    assert read_study.labels[read_study.compared[3].name] in page.inner_text("#job-title")
    address = parse_qs(page.url.partition("#")[2])
    assert address["job"] == [read_study.compared[3].name]
    page.keyboard.press("ArrowRight")
    assert read_study.labels[read_study.compared[4].name] in page.inner_text("#job-title")
    page.locator("dialog [aria-label='next job']").focus()
    for at in (5, 6):
        page.keyboard.press("Enter")
        assert read_study.labels[read_study.compared[at].name] in page.inner_text("#job-title")
    page.keyboard.press("ArrowLeft")
    assert read_study.labels[read_study.compared[5].name] in page.inner_text("#job-title")
    page.locator("dialog .scroll").first.focus()
    page.keyboard.press("ArrowRight")
    assert read_study.labels[read_study.compared[5].name] in page.inner_text("#job-title"), (
        "an arrow scrolls what can be scrolled"
    )
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    focused = page.evaluate("document.activeElement.dataset.open")
    assert focused == "3", "the focus is back where it was"
    assert "job=" not in page.url


def test_address_of_a_job_opens_it(report: Path, open_page: Open, read_study: Sweep) -> None:
    job = read_study.compared[5]
    page = open_page(report, address=f"#job={quote(job.name)}")
    assert read_study.labels[job.name] in page.inner_text("dialog[open] #job-title")


def test_click_on_a_heading_sorts(page: "Page", read_study: Sweep) -> None:
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


def test_columns_of_single_domains_unfold(page: "Page") -> None:
    group = page.locator("#compare .groups th", has_text="loss L")
    assert group.get_attribute("colspan") == "1"
    page.check("[data-fold=compare]")
    assert group.get_attribute("colspan") == "4"
    assert page.locator("#compare thead .detail:visible").count() > 0


def test_numbers_of_a_plot_are_saved_and_shown(page: "Page") -> None:
    choose(page, "loss L(d)", "selectivity")
    bar = page.locator("#scatter + .tools")
    header, *rows = rows_of(saved(page, bar.get_by_text("CSV").click))
    assert header[:2] == ["job", "mean L(d), nats per token"]
    assert [[row[0], float(row[1]), float(row[4])] for row in rows] == [
        row[:3] for row in numbers_of(page)
    ]
    bar.get_by_text("numbers").click()
    table = page.locator("#scatter ~ .scroll .numbers")
    assert table.locator("tbody tr").count() == len(rows)
    choose(page, "tax", "selectivity")
    show(page, "seed=1")
    assert "mean tax" in table.locator("thead").inner_text(), "the table is that of the plot"
    assert table.locator("tbody tr").count() == len(numbers_of(page)) < len(rows)
    bar.get_by_text("numbers").click()
    assert page.locator("#scatter ~ .scroll .numbers").count() == 0


def test_numbers_of_curves_are_saved(page: "Page", read_study: Sweep) -> None:
    figure = page.locator("#curves figure").first
    figure.scroll_into_view_if_needed()
    header, *rows = rows_of(saved(page, figure.get_by_text("CSV").click))
    assert header == ["series", "job", "step", "loss, nats per token"]
    job = next(job for job in read_study.compared if job.edges == "both")
    label = read_study.labels[job.name]
    own = {int(row[2]): float(row[3]) for row in rows if row[1] == label and "held out" in row[0]}
    domain = figure.locator("figcaption").inner_text()
    history = {
        row["step"]: row[registry.EVAL_LOSS(domain)]
        for row in job.history
        if registry.EVAL_LOSS(domain) in row
    }
    assert own == pytest.approx(history, abs=1e-4)


def test_table_is_saved_as_it_is_shown(page: "Page", read_study: Sweep) -> None:
    show(page, "edges=act")
    button = page.locator("[data-save-table=compare]")
    header, *rows = rows_of(saved(page, button.click))
    assert len(rows) == len([job for job in read_study.compared if job.edges == "act"])
    column = header.index("loss L(d) mean")
    losses = [job.mean_loss.value for job in read_study.compared if job.edges == "act"]
    assert sorted(float(row[column]) for row in rows) == pytest.approx(sorted(losses))


def test_matrices_are_saved(page: "Page", read_study: Sweep) -> None:
    show(page, "kind=peers seed=0")
    header, *rows = rows_of(saved(page, page.locator("#save-matrices").click))
    assert header == ["job", "removed", "domain", "nats", "low", "high"]
    for label, part, domain, value, *_ in rows:
        job = job_named(read_study, label)
        assert float(value) == pytest.approx(job.metrics[registry.MATRIX(part, domain)], rel=1e-5)
    assert len(rows) == 9 * len(
        [job for job in read_study.compared if job.kind == "peers" and job.seed == 0]
    )


def test_pictures_are_saved_on_white_in_dark_too(report: Path, open_page: Open) -> None:
    page = open_page(report, color_scheme="dark")
    bar = page.locator("#scatter + .tools")
    png = saved(page, bar.get_by_text("PNG").click)
    assert png.suggested_filename.endswith(".png")
    pixels = read_picture(Path(png.path()).read_bytes())
    assert pixels.shape[1] > 1000 and pixels[2, 2].tolist() == [255, 255, 255]
    assert pixels.mean() > 230
    svg = Path(saved(page, bar.get_by_text("SVG").click).path()).read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "removal over compute-equivalent" in svg


def test_pictures_of_rounds_are_saved(alternating: Path, open_page: Open) -> None:
    page = open_page(write_report(alternating))
    bar = page.locator(".rounds[open] .picture + .tools").first
    svg = Path(saved(page, bar.get_by_text("SVG").click).path()).read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    png = Path(saved(page, bar.get_by_text("PNG").click).path()).read_bytes()
    assert len(np.unique(read_picture(png).reshape(-1, 3), axis=0)) > 5
    bars = page.locator(".rounds[open] .picture + .tools")
    header, *blocks = rows_of(saved(page, bars.nth(0).get_by_text("CSV").click))
    assert header[:3] == ["block", "owners", "mlp units"] and blocks[0][0] == "core"
    header, *units = rows_of(saved(page, bars.nth(1).get_by_text("CSV").click))
    assert header[:4] == ["layer", "kind", "block", "units"]
    for layer in range(4):
        own = [int(row[3]) for row in units if row[:2] == [str(layer), "mlp"]]
        assert sum(own) == 768, "every unit of the layer has a block"


def test_dark_page_is_dark_and_its_plots_are_legible(report: Path, open_page: Open) -> None:
    means = {}
    for scheme in ("dark", "light"):
        page = open_page(report, color_scheme=scheme)
        page.locator("#scatter .xtick text").first.wait_for()
        means[scheme] = float(read_picture(page.screenshot()).mean())
        fill = page.locator("#scatter .xtick text").first.evaluate("(e) => e.style.fill")
        level = np.mean([int(v) for v in re.findall(r"\d+", fill)[:3]])
        assert level > 128 if scheme == "dark" else level < 128
    assert means["dark"] < 80 < 200 < means["light"]


def test_print_has_no_buttons_and_every_plot(page: "Page") -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".tools:visible, #filters:visible").count() == 0
    undrawn = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter("
        "(plot) => !plot.querySelector('.main-svg')).length"
    )
    assert undrawn == 0
    assert page.pdf().startswith(b"%PDF")
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_open_panel_is_printed_whole(page: "Page") -> None:
    page.locator("#compare tbody a").nth(9).click()
    page.locator("dialog .main-svg").first.wait_for()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    heights = page.evaluate("[panel.scrollHeight, panel.clientHeight]")
    assert heights[0] <= heights[1] + 2 and heights[1] > 1000
    assert page.locator("main:visible").count() == 0
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(100)
    assert page.evaluate("panel.matches(':modal')") and page.inner_text("#job-title")


def test_paper_is_light(report: Path, open_page: Open) -> None:
    page = open_page(report, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    colour = page.evaluate("getComputedStyle(document.body).color")
    assert np.mean([int(v) for v in re.findall(r"\d+", colour)[:3]]) < 60


def test_address_that_changes_is_followed(page: "Page", read_study: Sweep) -> None:
    page.evaluate("location.hash = 'x=loss+L(d)&y=selectivity&q=edges%3Dact'")
    page.wait_for_timeout(200)
    assert page.input_value("#axis-x") == "loss L(d)" and "L(d)" in (
        page.text_content("#scatter .xtitle") or ""
    )
    assert page.inner_text("#count").startswith("10 of")
    name = quote(read_study.compared[3].name)
    page.evaluate(f"location.hash = 'job={name}'")
    page.locator("dialog[open]").wait_for()
    page.evaluate("location.hash = ''")
    page.wait_for_timeout(200)
    assert page.locator("dialog[open]").count() == 0
    assert page.inner_text("#count") == "all 28 jobs"


def test_bounds_are_told_and_saved_as_such(page: "Page", read_study: Sweep) -> None:
    choose(page, "compute-equivalent", "removal")
    header, *rows = page.evaluate("scatterRows()")
    capped = {row[0] for row in rows if row[header.index("bound across")] == "at most"}
    assert capped and capped == {
        read_study.labels[job.name]
        for job in read_study.compared
        if job.mean_compute_equivalent is None and job.mean_removal is not None
    }
    choose(page, "relearning steps", "removal")
    header, *rows = page.evaluate("scatterRows()")
    censored = {row[0] for row in rows if row[header.index("bound across")] == "at least"}
    expected = {
        read_study.labels[job.name]
        for job in read_study.compared
        if any(job.metrics.get(registry.RELEARN_CENSORED(domain)) == 1 for domain in job.domains)
    }
    assert censored and censored <= expected
    assert not censored & {label for label, *_, is_best in numbers_of(page) if is_best}
    download = saved(page, page.locator("[data-save-table=robust]").click)
    cells = {cell for row in rows_of(download)[1:] for cell in row}
    assert any(cell.startswith("≥") for cell in cells)


def test_control_of_rounds_is_not_on_the_frontier(alternating: Path, open_page: Open) -> None:
    page = open_page(write_report(alternating))
    best = {label for label, *_, is_best in numbers_of(page) if is_best}
    assert best and not any("attribution=random" in label for label in best)


def test_dense_jobs_alone_can_be_put_against_each_other(
    tmp_path: Path, make_job: MakeJob, open_page: Open
) -> None:
    for lr in (0.001, 0.1):
        make_job(tmp_path, edges="dense", num_documents=2, resamples=0, settings={"train.lr": lr})
    page = open_page(write_report(tmp_path))
    choose(page, "train.lr", "loss L(d)")
    page.locator("#scatter .point").first.wait_for(state="attached")
    assert len(numbers_of(page)) == 2
    assert page.evaluate("drawn.get(scatterBox).layout.xaxis.type") == "log"


def test_names_that_begin_like_a_formula_are_saved_as_text(
    tmp_path: Path, make_job: MakeJob, open_page: Open
) -> None:
    for at, root in enumerate(('=HYPERLINK("http://x","y")', "@SUM(1)")):
        make_job(
            tmp_path, num_documents=2, resamples=0, seed=at, overrides=[f"job{at}"],
            settings={"data.root": root},
        )  # fmt: skip
    page = open_page(write_report(tmp_path))
    for act in (page.locator("[data-save-table=compare]"), page.locator("#save-all")):
        rows = rows_of(saved(page, act.click))
        cells = [cell for row in rows[1:] for cell in row if "HYPERLINK" in cell or "SUM" in cell]
        assert len(cells) == 2 and all(cell.startswith("'") for cell in cells)
        numbers = [cell for row in rows[1:] for cell in row if re.fullmatch(r"-\d.*", cell)]
        assert numbers == [cell for cell in numbers if not cell.startswith("'")]


def serious(page: "Page") -> list[str]:
    """What axe-core finds that is serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(report: Path, open_page: Open, scheme: str) -> None:
    page = open_page(report, color_scheme=scheme)
    page.locator("#scatter .point").first.wait_for(state="attached")
    page.locator("#scatter + .tools").get_by_text("numbers").click()
    assert serious(page) == []
    page.locator("#compare tbody a").nth(9).click()
    page.locator("dialog .main-svg").first.wait_for()
    for fold in page.locator("dialog summary").all():
        fold.click()
    assert serious(page) == []


def test_axe_finds_nothing_serious_in_rounds_and_on_a_phone(
    alternating: Path, open_page: Open
) -> None:
    page = open_page(write_report(alternating), width=390)
    page.locator("#scatter .point").first.wait_for(state="attached")
    assert serious(page) == []


def test_texts_stand_side_by_side_and_part_where_the_models_do(
    tmp_path: Path, make_job: MakeJob, open_page: Open
) -> None:
    for edges in ("act", "both"):
        job = make_job(tmp_path, edges=edges, num_documents=2, resamples=0)
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
        (job / "samples.json").write_text(json.dumps({"format": 1, "prompts": prompts}))
    page = open_page(write_report(tmp_path))
    page.select_option("#prompt", "1")
    assert "about biology it ends" in page.inner_text("#prompt-text")
    texts = page.locator("#texts .job-texts")
    assert texts.count() == 2 and texts.first.locator(".text-of").count() == 7
    own = texts.first.locator(".text-of.own")
    assert [text.locator("h4").inner_text() for text in own.all()] == [
        "without biology", "only biology",
    ]  # fmt: skip
    assert own.first.locator("pre").inner_text() == "one <b>removed</b> biology ends here"
    assert own.first.locator(".same").first.inner_text() == "one "
    show(page, "edges=both")
    assert texts.count() == 1 and "two both" in texts.first.inner_text()
    page.locator("#texts a").click()
    assert page.locator("dialog .passage").count() == 2, "each prompt of the job"
    assert serious(page) == []


def test_all_numbers_are_saved_by_the_page_alone(page: "Page", read_study: Sweep) -> None:
    show(page, "edges=act seed=1")
    header, *rows = rows_of(saved(page, page.locator("#save-all").click))
    jobs = {job.name: job for job in read_study.compared}
    assert {row[0] for row in rows} == {
        job.name for job in read_study.compared if (job.edges, job.seed) == ("act", 1)
    }
    for row in rows:
        job = jobs[row[0]]
        found = dict(zip(header, row, strict=True))
        assert found["train.lr"] == str(job.settings["train.lr"])
        key = registry.LOSS_FULL("code")
        assert float(found[key]) == pytest.approx(job.metrics[key], rel=1e-5)
        assert float(found[f"{key}/low"]) == pytest.approx(job.intervals[key][0], rel=1e-5)


def test_names_from_outside_stay_text(tmp_path: Path, make_job: MakeJob, open_page: Open) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    for seed in range(2):
        make_job(
            tmp_path / "sweep", num_documents=2, resamples=0, seed=seed, command=evil,
            settings={"data.root": evil + str(seed), "partition.name": evil},
        )  # fmt: skip
    page = open_page(write_report(tmp_path / "sweep"))
    page.locator("#scatter .point").first.wait_for(state="attached")
    page.locator("#compare tbody a").first.click()
    page.locator("dialog .main-svg").first.wait_for()
    for fold in page.locator("dialog summary").all():
        fold.click()
    page.wait_for_timeout(200)
    assert page.locator("img").count() == 0
    assert page.title().startswith("sweep")


@pytest.mark.slow
def test_five_hundred_jobs_load_in_three_seconds(
    tmp_path: Path, make_job: MakeJob, open_page: Open
) -> None:
    for seed in range(25):
        for edges in ("none", "weight", "act", "both"):
            for dropout in (0.0, 0.25, 0.5, 0.75, 1.0):
                make_job(
                    tmp_path, seed=seed, edges=edges, foreign_dropout=dropout,
                    num_documents=3, resamples=0,
                )  # fmt: skip
    page = open_page(write_report(tmp_path))
    page.locator("#scatter .point").first.wait_for(state="attached")
    took_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took_ms < 3000
    assert page.inner_text("#count") == "all 500 jobs"
    # Matrices beyond the first come when one scrolls to them, in the order of the jobs.
    cards = page.locator("#matrices .card")
    assert cards.count() == 48
    filtering_ms = page.evaluate(
        "(() => { const begun = performance.now(); applyFilter('seed=24');"
        " return performance.now() - begun; })()"
    )
    assert filtering_ms < 1000
    page.evaluate("applyFilter('')")
    page.locator("#matrices").evaluate("(box) => box.scrollTo(0, box.scrollHeight)")
    cards.nth(60).wait_for(state="attached")
    order = [int(card.get_attribute("data-job") or -1) for card in cards.all()]
    assert order == sorted(order)
