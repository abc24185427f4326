"""What the project promises outside its code: README, Makefile, changelog, wheel."""

import contextlib
import functools
import io
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gr_sweep
from gr_sweep.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path, program: str) -> list[list[str]]:
    """Arguments of every call of a program in the shell blocks of a page."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in found if words and words[0] == program]


def is_run(words: list[str]) -> bool:
    """Whether the words after `gr-sweep` are those of a run: no verb, and not `--help` or alike."""
    return not (words and (words[0] in app.VERBS or words[0].startswith("--")))


ALL_COMMANDS = [words for page in PAGES for words in commands(page, "gr-sweep")]
RUNS = sorted({tuple(words) for words in ALL_COMMANDS if is_run(words)})
VERB_CALLS = sorted({tuple(words) for words in ALL_COMMANDS if not is_run(words)})


def project_files() -> list[Path]:
    """Files that are committed, or will be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def test_every_make_command_of_the_pages_names_a_target_that_make_alone_lists():
    assert commands(ROOT / "README.md", "make")[:2] == [["sweep"], ["test"]]
    words = [word for page in PAGES for call in commands(page, "make") for word in call]
    named = {word for word in words if "=" not in word and not word.startswith("-")}
    # The tests may run under make, which tells a second one to print folders.
    call = ["make", "--no-print-directory"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert named <= listed and {"sweep", "test", "lint", "bench", "clean", "help"} <= listed


def first_value(word: str) -> str:
    """`a=1,2` -> `a=1`; a value with brackets or quotes stays whole."""
    return re.sub(r"^([^,\[{('\"]*),.*", r"\1", word)


@pytest.fixture
def place_of_a_reader(tmp_path, monkeypatch):
    """A folder with what the pages call DIR, and an account."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR" / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr("gr_sweep.cli.check_fit.check_tracking", lambda tracking: None)


def assert_composes(words: tuple[str, ...]) -> None:
    from gr_sweep.cli.compose import compose

    assert compose([word for word in words if word != "-m"], multirun="-m" in words).jobs


def test_the_first_job_of_every_run_of_the_readme_composes(place_of_a_reader):
    runs = [words for words in commands(ROOT / "README.md", "gr-sweep") if is_run(words)]
    for words in sorted({tuple(map(first_value, words)) for words in runs}):
        assert_composes(words)


@pytest.mark.slow
@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_every_job_of_every_run_of_the_pages_composes(place_of_a_reader, words):
    assert_composes(words)


@functools.cache
def help_of(*verb: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        app.main([*verb, "--help"])
    return printed.getvalue()


def test_every_option_of_a_verb_on_the_pages_exists():
    for words in VERB_CALLS:
        # `bench` has options by benchmark; `estimate` takes the words of a run too.
        verb = words[: 2 if words[0] == "bench" else 1] if words[0] in app.VERBS else ()
        for option in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert re.search(rf"{option}\b", help_of(*verb)), " ".join(words)


def test_every_local_link_of_a_page_leads_to_a_file():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        # A name without a dot is a formula such as L[e](d), or the licence.
        local = [link for link in links if "." in link and "://" not in link]
        assert [link for link in local if not (page.parent / link).exists()] == [], page


def test_no_file_names_a_folder_of_one_machine_and_no_tool_s_files_are_committed():
    folder = re.compile(rb"(?:^|[^A-Za-z])/(?:work|root|home|farm|Users)/[a-z]", re.M)
    junk = {".venv", "__pycache__", ".ruff_cache", ".pytest_cache"}
    for path in project_files():
        name = path.relative_to(ROOT)
        content = path.read_bytes()
        assert b"\0" in content or not folder.search(content), name
        assert not junk & set(name.parts), name
        assert name.parts[0] != "outputs" or name.name == ".gitignore", name


def test_the_wheel_holds_the_configs_and_what_the_report_needs(tmp_path):
    pytest.importorskip("hatchling", reason="the build backend; pip install -e .[dev] brings it")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=300)
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
