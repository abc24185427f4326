"""Imports go one way, and heavy packages stay where they belong.

What the source says is read from every file, imports within functions included; what importing a
part really loads is seen in a fresh process.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gr_sweep

PACKAGE = Path(gr_sweep.__file__).parent

ORDER = (
    "errors",
    "arguments",
    "domains",
    "files",
    "startup",
    "config",
    "jobdir",
    "joblock",
    "checks",
    "routing",
    "model",
    "data",
    "metrics",
    "eval",
    "assign",
    "tracking",
    "train",
    "layout",
    "setup",
    "alternate",
    "job",
    "export",
    "launch",
    "bench",
    "cli",
)
"""A part imports from those before it, and from itself."""

MAY_IMPORT = {
    "routing": {"errors", "domains", "routing"},
    "model": {"errors", "domains", "routing", "model"},
    "report": {
        "errors",
        "domains",
        "files",
        "config",
        "jobdir",
        "metrics",
        "tracking",
        "layout",
        "report",
    },
    "cli": {*ORDER, "report", "gr_sweep"},
} | {
    part: set(ORDER[: ORDER.index(part) + 1])
    for part in ORDER
    if part not in ("routing", "model", "cli")
}

ONLY_IN = {
    "hydra": "cli/",
    "omegaconf": "cli/",
    # tracking/wandb.py is the tracker of a job, tracking/wandb_server.py what `dashboard` needs.
    "wandb": "tracking/wandb",
    "wandb_workspaces": "tracking/dashboard.py",
    "datasets": "data/",
}
"""Packages that one part alone may name."""

WITHOUT_TORCH = (
    "errors",
    "arguments",
    "domains",
    "files",
    "startup",
    "config",
    "jobdir",
    "joblock",
    "checks",
    "metrics",
    "report",
    "tracking",
    "layout",
)
"""Parts that never name torch."""


def modules() -> list[Path]:
    """Every source file but the package's own `__init__` and `__main__`, which stand above all."""
    return sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in ("__init__.py", "__main__.py")
    )


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the whole name"
            # `from gr_sweep import config` names a part, `from gr_sweep.config import X` as well.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """`gr_sweep.routing.plan.RoutePlan` -> `routing`; the package itself -> `gr_sweep`."""
    parts = [*name.split("."), ""]
    return parts[1] if parts[1] in (*ORDER, "report") else "gr_sweep"


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_place_in_the_order() -> None:
    assert {own_part(path) for path in modules()} <= {*ORDER, "report"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_what_stands_before_its_part(path: Path) -> None:
    # The version is nobody's part.
    names = [name for name in imported_names(path) if name != "gr_sweep.__version__"]
    used = {part_of(name) for name in names if name.split(".")[0] == "gr_sweep"}
    assert used <= MAY_IMPORT[own_part(path)]


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_named_in_its_part_alone(package: str) -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules()
        if any(name.split(".")[0] == package for name in imported_names(path))
    }
    assert all(name.startswith(ONLY_IN[package]) for name in found), found


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_a_part_of_numbers_and_files_never_names_torch(part: str) -> None:
    found = [
        path
        for path in modules()
        if own_part(path) == part
        and any(name.split(".")[0] in ("torch", "transformers") for name in imported_names(path))
    ]
    assert not found


PROGRAM = '''
import importlib, json, pkgutil, sys

class Blocked:
    """A finder that does not know some packages: as where they are not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path[:] = map(Blocked, sys.meta_path)
loaded = {}
for part in sys.argv[2:]:
    module = importlib.import_module(part)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), part + "."):
        # Those that import wandb; test_a_package_is_named_in_its_part_alone says which may.
        if "tracking.wandb" not in found.name and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    loaded[part] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(loaded))
'''


def loaded_by(*parts: str, blocked: str = "") -> dict[str, set[str]]:
    """Imports parts one after another in a fresh process; the packages loaded after each."""
    there = [
        p
        for p in parts
        if (PACKAGE.parent / (p.replace(".", "/") + ".py")).exists()
        or (PACKAGE.parent / p.replace(".", "/") / "__init__.py").exists()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, *there],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {part: set(packages) for part, packages in json.loads(done.stdout).items()}


def test_light_parts_load_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "hydra", "omegaconf", "wandb", "pyarrow"}
    heavy.add("wandb_workspaces")
    code = "import sys, json, gr_sweep; print(json.dumps(sorted(sys.modules)))"
    names = json.loads(
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=PACKAGE.parent,
        ).stdout
    )
    assert not (heavy | {"numpy", "pandas"}) & set(names)

    loaded = loaded_by(
        "gr_sweep.errors",
        "gr_sweep.domains",
        "gr_sweep.config",
        "gr_sweep.tracking",
        "gr_sweep.metrics",
        "gr_sweep.report",
    )
    assert not (heavy | {"numpy", "pandas"}) & loaded["gr_sweep.tracking"]
    assert not (heavy | {"pandas"}) & loaded["gr_sweep.metrics"]
    # pandas loads pyarrow by itself where it is installed.
    assert not (heavy - {"pyarrow"}) & loaded["gr_sweep.report"]


def test_routing_and_training_load_without_hydra_wandb_and_datasets() -> None:
    loaded = loaded_by(
        "gr_sweep.routing",
        "gr_sweep.model",
        "gr_sweep.metrics",
        "gr_sweep.eval",
        "gr_sweep.train",
        "gr_sweep.bench",
        blocked="hydra,omegaconf,wandb,datasets",
    )
    assert "torch" in loaded["gr_sweep.routing"]
    assert "transformers" not in loaded["gr_sweep.routing"]
    assert "pandas" not in loaded["gr_sweep.routing"]


def test_the_public_names_are_there_when_asked_for() -> None:
    from gr_sweep.model.route import route_model
    from gr_sweep.routing.plan import RoutePlan

    assert gr_sweep.RoutePlan is RoutePlan
    assert gr_sweep.route_model is route_model
    with pytest.raises(AttributeError, match="has no attribute 'RoutPlan'"):
        gr_sweep.RoutPlan  # noqa: B018
