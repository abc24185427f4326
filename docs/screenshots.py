r"""Takes the screenshots of these pages into docs/pictures/, of a sweep that has finished:

    gr-sweep -m edges=none,act,weight,both route.foreign_dropout=0.5,1.0 train.steps=200 \
        data=local data.root=DIR 'baselines=[dense,filtered]' \
        hydra.sweep.dir=outputs/edges-and-dropout
    python docs/screenshots.py outputs/edges-and-dropout

The report is looked at in Chromium, and the terminal's table while a sweep of small jobs runs. It
needs what the tests of the page need: playwright, pillow and Debian's chromium.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.cli.job_status import JobReader
from gr_sweep.cli.status import job_table, live_view
from gr_sweep.errors import JobError
from gr_sweep.jobdir import State
from gr_sweep.report import read_sweep, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from rich.console import RenderableType

FOLDER = Path(__file__).resolve().parent / "pictures"
WIDE, PHONE = {"width": 1280, "height": 1180}, {"width": 390, "height": 844}

SMALL_SWEEP = (
    "-m", "edges=act,weight,both", "seed=0,1,2", "model=tiny", "train.steps=150", "tracking=off",
    "hydra/launcher=local_parallel", "hydra.launcher.jobs_per_device=2",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of a finished sweep")
    sweep = parser.parse_args().sweep
    from playwright.sync_api import sync_playwright

    write_report(sweep)
    with sync_playwright() as started, tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "index.html"
        report.write_text(page_of(sweep), encoding="utf-8")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take_report(browser, report)
        running, done = frames(Path(scratch) / "edges")
        take_terminal(browser, "watch", running)
        take_terminal(browser, "status", done)


def page_of(sweep: Path) -> str:
    """The page without the places of this machine."""
    page = (sweep / "report" / "index.html").read_text(encoding="utf-8")
    page = re.sub(r"hydra\.sweep\.dir=[^\s\"<\\]+", f"hydra.sweep.dir=outputs/{sweep.name}", page)
    places = {}
    for job in read_sweep(sweep).jobs:
        root = job.settings.get("data.root")
        if root:
            # In a folder's name slashes are dashes.
            places |= {root: "DIR", root.replace("/", "-"): "DIR"}
    for place, name in places.items():
        page = page.replace(place, name)
    return page


def take_report(browser: "Browser", report: Path) -> None:
    """The page on a desk in light and dark, on a phone, and one job and its texts."""
    with opened(browser, report, WIDE) as page:
        keep(page, "report")
        page.evaluate("document.getElementById('text').scrollIntoView()")
        keep(page, "report-text")
        page.evaluate("scrollTo(0, 0)")
        page.fill("#filter", "edges!=dense")
        page.locator("#compare tbody tr:visible a").last.click()
        keep(page, "report-job")
    with opened(browser, report, WIDE, color_scheme="dark") as page:
        page.evaluate("document.getElementById('removal').scrollIntoView()")
        keep(page, "report-dark")
    with opened(browser, report, PHONE, has_touch=True) as page:
        page.evaluate("document.getElementById('utility-separability').scrollIntoView()")
        keep(page, "report-phone")


@contextmanager
def opened(
    browser: "Browser", report: Path, size: dict[str, int], **options: Any
) -> Iterator["Page"]:
    context = browser.new_context(viewport=size, **options)
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    page.wait_for_function("window.Plotly")
    yield page
    context.close()


def frames(folder: Path) -> tuple[str, str]:
    """What `status --watch` shows while a sweep runs, and `status` when it is over, as SVG."""
    command = [sys.executable, "-m", "gr_sweep", *SMALL_SWEEP, f"hydra.sweep.dir={folder}"]
    running = None
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sweep:
        while running is None and sweep.poll() is None:
            time.sleep(0.5)
            try:
                jobs = JobReader(folder).read()
            except JobError:
                continue  # Nothing is there yet.
            states = [job.state for job in jobs]
            # In the middle: some are done, and those that run have shown their speed.
            started = [job for job in jobs if job.state is State.running and job.left_s is not None]
            if states.count(State.done) >= 3 and len(started) == 2:
                hint = "Ctrl-C ends this; the jobs keep running"
                view = live_view(jobs, folder.name, 100, hint)
                running = as_svg("gr-sweep status outputs/edges --watch", 104, view)
    if running is None or sweep.returncode:
        raise SystemExit(f"the sweep ended with status {sweep.returncode} before it could be seen")
    jobs = JobReader(folder).read()
    return running, as_svg("gr-sweep status outputs/edges", 112, job_table(jobs))


def as_svg(title: str, width: int, part: "RenderableType") -> str:
    """What a terminal of that many characters shows, without fonts from the network."""
    from rich.console import Console

    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(part)
    picture = console.export_svg(title=title, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}", "", picture, flags=re.S)


def take_terminal(browser: "Browser", name: str, svg: str) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, device_scale_factor=1.5)
    page = context.new_page()
    page.set_content(f'<body style="margin:0;background:transparent">{svg}')
    save(page.locator("svg").first.screenshot(omit_background=True), name)
    context.close()


def keep(page: "Page", name: str) -> None:
    # Plots are drawn when they come into view, and what opens moves for a moment.
    page.wait_for_timeout(1500)
    save(page.screenshot(), name)


def save(png: bytes, name: str) -> None:
    from PIL import Image

    path = FOLDER / f"{name}.png"
    Image.open(io.BytesIO(png)).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size // 1024} KiB)")


if __name__ == "__main__":
    main()
