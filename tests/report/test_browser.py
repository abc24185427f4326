"""The page in a real browser: it draws, sorts, and is not blank."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gr_sweep.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Opens a page in a browser with a fresh profile and returns what it prints."""

    def open_page(page: Path, *options: str) -> str:
        assert CHROMIUM is not None
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=10000",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}", *options,
            page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return open_page


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Red, green and blue of a PNG, uint8 (height, width, 3)."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read a screenshot")
    return np.asarray(image.open(path).convert("RGB"))


@pytest.mark.parametrize("window", ["1280,2400", "500,2400"])
def test_screenshot_is_not_blank(sweep: Path, tmp_path: Path, browse: Browse, window: str) -> None:
    picture = tmp_path / "report.png"
    browse(write_report(sweep), f"--window-size={window}", f"--screenshot={picture}")
    pixels = read_picture(picture)
    assert pixels.shape[:2] == (2400, int(window.split(",")[0]))
    colours = {tuple(colour) for colour in pixels[::2, ::2].reshape(-1, 3).tolist()}
    for edges in ((0xCC, 0x79, 0xA7), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0x00, 0x72, 0xB2)):
        assert edges in colours, "a colour of the edges is nowhere to be seen"
    assert len(colours) > 100


def test_plots_are_drawn(sweep: Path, browse: Browse) -> None:
    dom = browse(write_report(sweep), "--dump-dom")
    plots = re.findall(r'<div [^>]*class="[^"]*js-plotly-plot', dom)
    assert len(plots) == 4, "the scatter and three domains"
    # A job is a path of its own in the scatter; four jobs can be removed from, one is dense.
    assert len(re.findall(r'<path class="point"', dom)) >= 4
    assert "mean selectivity, nats" in dom and ">dense</text>" in dom


def test_click_on_a_heading_sorts(sweep: Path, tmp_path: Path, browse: Browse) -> None:
    page = write_report(sweep)
    click = "<script>document.querySelectorAll('#compare thead button')[%d].click()</script>"
    orders = []
    for times in (1, 2):
        copy = tmp_path / f"{times}.html"
        text = page.read_text(encoding="utf-8")
        # The first column of losses follows edges; the page ends after our script.
        copy.write_text(text.replace("</body>", (click % 1) * times + "</body>"), encoding="utf-8")
        dom = browse(copy, "--dump-dom")
        orders.append(re.findall(r'<th scope="row" data-v="(\w+)"', dom))
    assert orders[0] == ["dense", "act", "none", "weight", "both"]
    assert orders[1] == orders[0][::-1]


def test_tab_shows_other_axes(study: Path, tmp_path: Path, browse: Browse) -> None:
    page = write_report(study)
    text = page.read_text(encoding="utf-8")
    titles = []
    for at in (0, 4):
        copy = tmp_path / f"tab{at}.html"
        click = f"<script>document.querySelectorAll('.tabs button')[{at}].click()</script>"
        copy.write_text(text.replace("</body>", click + "</body>"), encoding="utf-8")
        dom = browse(copy, "--dump-dom")
        assert len(re.findall(r'aria-pressed="true"', dom)) == 1
        titles.append(re.findall(r'class="xtitle"[^>]*>([^<]+)<', dom)[0])
    assert titles[0].startswith("mean compute-equivalent")
    assert titles[1].startswith("mean L(d)")


def test_columns_of_single_domains_unfold(study: Path, tmp_path: Path, browse: Browse) -> None:
    page = write_report(study)
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "unfolded.html"
    click = "<script>document.querySelector('[data-fold=compare]').click()</script>"
    copy.write_text(text.replace("</body>", click + "</body>"), encoding="utf-8")
    for opened, shown in ((page, "1"), (copy, "4")):
        dom = browse(opened, "--dump-dom")
        table = dom.split('id="compare"')[1].split("</thead>")[0]
        assert re.findall(r'colspan="(\d)"[^>]*>loss L', table) == [shown]


def test_dark_page_is_dark(sweep: Path, tmp_path: Path, browse: Browse) -> None:
    page = write_report(sweep)
    means = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        browse(
            page,
            "--window-size=1000,1200",
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={picture}",
        )
        means[scheme] = float(read_picture(picture).mean())
    assert means["dark"] < 80 < 200 < means["light"]
