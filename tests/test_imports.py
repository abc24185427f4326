"""Imports go in one direction and without circles, and heavy packages stay in their parts.

What the source says is read from every file, imports inside functions included; what an import
really loads is seen in a fresh process.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gr_sweep
from gr_sweep.data.prepare import prepare_data
from tests.data.corpus import local, partition, write_root
from tests.report.conftest import write_job

PACKAGE = Path(gr_sweep.__file__).parent

ORDER = (
    *("errors", "arguments", "domains", "files", "bounds", "config", "fingerprint"),
    *(
        "jobdir",
        "resolve",
        "checks",
        "routing",
        "model",
        "data",
        "metrics",
        "eval",
        "tracking",
    ),
    *(
        "train",
        "assign",
        "planning",
        "branch",
        "components",
        "alternate",
        "job",
        "export",
        "launch",
    ),
    *("bench", "cli"),
)
"""A part of the package may import the parts before it, and itself."""

FEWER = {
    "routing": {"errors", "domains", "routing"},
    "model": {"errors", "domains", "routing", "model"},
    "report": {
        *("errors", "domains", "files", "config", "fingerprint", "jobdir", "metrics", "tracking"),
        *("planning", "routing", "report"),  # of routing the plan, which needs no torch
    },
    "cli": {*ORDER, "report", "gr_sweep"},
}
"""What other parts may import."""

ONLY_IN = {
    "hydra": "cli/",
    "omegaconf": "cli/",
    # tracking/wandb.py is the tracker of a job, the other two what `dashboard` needs.
    "wandb": "tracking/wandb",
    "wandb_workspaces": "tracking/wandb_dashboard.py",
    "datasets": "data/",
}
"""Packages that only one part may import."""

WITHOUT_TORCH = {
    *ORDER[: ORDER.index("routing")],
    *("metrics", "report", "tracking", "planning"),
}
"""Parts that never import torch."""

FILES = {
    ".".join(("gr_sweep", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py"
}
"""By dotted name."""


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, but for annotations alone (`TYPE_CHECKING`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_annotations = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_annotations:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """`gr_sweep.routing.plan.RoutePlan` -> `routing`; the package itself -> `gr_sweep`."""
    parts = [*name.split("."), ""]
    return parts[1] if parts[1] in (*ORDER, "report") else "gr_sweep"


def test_parts_import_only_what_stands_before_them():
    wrong = []
    for name, path in FILES.items():
        if name == "gr_sweep":
            continue
        part = part_of(name)
        assert part != "gr_sweep", f"{name} has no place in the order"
        allowed = FEWER.get(part) or {*ORDER[: ORDER.index(part) + 1]}
        for used in imported(path):
            is_ours = used.startswith("gr_sweep.") and used != "gr_sweep.__version__"
            if is_ours and part_of(used) not in allowed:
                wrong.append(f"{name} imports {used}")
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    graph = {}
    for name, path in FILES.items():
        names = {used if used in FILES else used.rpartition(".")[0] for used in imported(path)}
        graph[name] = (names & FILES.keys()) - {name}
    tuple(TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_a_package_is_imported_in_its_part_alone():
    for path in FILES.values():
        name = path.relative_to(PACKAGE).as_posix()
        for package in {used.split(".")[0] for used in imported(path)} & ONLY_IN.keys():
            assert name.startswith(ONLY_IN[package]), f"{name} imports {package}"


def test_parts_of_numbers_and_files_never_import_torch():
    found = [
        name
        for name, path in FILES.items()
        if part_of(name) in WITHOUT_TORCH
        and any(used.split(".")[0] in ("torch", "transformers") for used in imported(path))
    ]
    assert found == []


WITHOUT = """
import importlib, pkgutil, sys

for name in ("hydra", "omegaconf", "wandb", "datasets"):
    sys.modules[name] = None  # as if it were not installed
for part in ("routing", "model", "eval", "train", "bench"):
    module = importlib.import_module(f"gr_sweep.{part}")
    for found in pkgutil.walk_packages(module.__path__, module.__name__ + "."):
        importlib.import_module(found.name)
    assert part != "routing" or "transformers" not in sys.modules
"""
"""A model of one's own is routed and trained without what the command line needs."""

CHECK = "from gr_sweep.cli.app import main; assert main(['-m', 'edges=both,nope']) == 2"
ROUTE = "import gr_sweep.routing.modules, gr_sweep.routing.plan"
STATUS = "from gr_sweep.cli.app import main; assert main(['status', '.']) == 0"
RESULTS = "import gr_sweep; assert len(gr_sweep.results('.')) == 1"
WARM_CACHE = """
from gr_sweep.data.prepare import prepare_data
from tests.data.corpus import local, partition
prepare_data(local(Path('.'), Path('.')), partition('code'))
"""


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        pytest.param(WITHOUT, "optuna", marks=pytest.mark.slow),
        (ROUTE, "transformers hydra omegaconf wandb datasets pandas"),
        (CHECK, "torch transformers datasets wandb pandas"),
        (STATUS, "torch transformers datasets wandb pandas numpy hydra"),
        (RESULTS, "torch transformers hydra wandb"),
        (WARM_CACHE, "torch transformers datasets pyarrow hydra tokenizers"),
    ],
)
def test_what_answers_at_once_loads_nothing_heavy(program, heavy, tmp_path, monkeypatch):
    write_job(tmp_path)
    if program is WARM_CACHE:
        monkeypatch.chdir(write_root(tmp_path, "code"))
        prepare_data(local(Path("."), Path(".")), partition("code"))
    found = f"print(*{{*{heavy.split()}}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from pathlib import Path\n{program}\n{found}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "", done
