"""What the project promises beside its code: README, Makefile, changelog, wheel."""

import itertools
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gr_sweep

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_lines(page: Path) -> list[str]:
    """Lines of the shell code blocks of a page, comments and continuations resolved."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip()]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))


def commands(page: Path, program: str) -> list[list[str]]:
    """Arguments of every call of a program in a page's code blocks."""
    found = [shlex.split(line, comments=True) for line in code_lines(page)]
    return [words[1:] for words in found if words and words[0] == program]


def project_files() -> list[Path]:
    """Files that are, or will be, committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def test_the_quick_start_is_make_sweep_then_make_test() -> None:
    calls = commands(ROOT / "README.md", "make")
    assert calls[:2] == [["sweep"], ["test"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_command_of_a_page_names_a_target(page: Path) -> None:
    targets = make_targets()
    words = [word for call in commands(page, "make") for word in call if "=" not in word]
    assert {word for word in words if not word.startswith("-")} <= targets


SLOW_PAGES = ("results.md", "methods.md")
"""Hundreds of jobs to compose."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW_PAGES else ())
        for page in PAGES
    ],
    ids=lambda page: page.name,
)
def test_every_gr_sweep_command_of_a_page_composes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gr_sweep.cli.app import VERBS
    from gr_sweep.cli.compose import compose

    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()  # as the pages call a folder of the reader's
    (tmp_path / "DIR" / "config.json").write_text("{}")
    monkeypatch.setattr("gr_sweep.cli.fit.check_tracking", lambda tracking: None)  # has no key
    for call in commands(page, "gr-sweep"):
        if call and (call[0] in VERBS or call[0].startswith("--")):
            continue
        overrides = [word for word in call if word != "-m"]
        assert compose(overrides, multirun="-m" in call).jobs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    # A name without a dot is a formula such as L[e](d), or the licence.
    local = [link for link in links if "." in link and "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_make_alone_lists_every_target() -> None:
    # The tests may run under make, which tells a second one to print folders.
    call = ["make", "--no-print-directory"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[:2] for line in done.stdout.splitlines()]
    assert sorted(listed) == sorted(["make", target] for target in make_targets())
    assert {"sweep", "test", "lint", "bench", "clean", "help"} <= make_targets()


def test_the_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[{re.escape(gr_sweep.__version__)}\]", changelog, re.M)


def test_every_dependency_has_a_constraint() -> None:
    import tomllib

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    constrained = {plain(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert {plain(re.split(r"[<>=!~\[]", entry)[0]) for entry in wanted} <= constrained
    assert not [line for line in lines if "+" in line], "local versions exist on one machine alone"


def test_no_file_names_a_folder_of_one_machine() -> None:
    folder = re.compile(r"(?:^|[^A-Za-z])/(?:work|root|home|farm|Users)/[a-z]", re.M)
    found = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" not in content and folder.search(content.decode("utf-8")):
            found.append(path.relative_to(ROOT).as_posix())
    assert found == []


def test_what_tools_leave_behind_is_ignored() -> None:
    junk = {".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis", ".pytest_cache"}
    assert not [path for path in project_files() if junk & set(path.relative_to(ROOT).parts)]
    outputs = [path for path in project_files() if path.relative_to(ROOT).parts[0] == "outputs"]
    assert outputs == [ROOT / "outputs" / ".gitignore"]


def test_the_wheel_holds_the_configs_and_what_the_report_needs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend; pip install -e .[dev] brings it")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"gr_sweep-{gr_sweep.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    in_checkout = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"gr_sweep/conf/{path.as_posix()}" for path in in_checkout} <= names
    package_files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gr_sweep").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package_files <= names
