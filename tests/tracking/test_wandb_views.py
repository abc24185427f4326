"""`gr-sweep dashboard`: a folder becomes a workspace and a report, of metrics that runs have."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.cli import dashboard
from gr_sweep.cli.app import main
from gr_sweep.config import Attribution, ProcedureKind
from gr_sweep.report import read_sweep
from gr_sweep.tracking import wandb as tracking_wandb
from gr_sweep.tracking.dashboard import Dashboard
from gr_sweep.tracking.wandb_api import Server
from tests.report.conftest import DOMAINS, write_job, write_rounds
from tests.tracking.stub_server import ENTITY, StubRun, StubServer, StubView
from tests.tracking.test_wandb_resume import ROOT
from tests.tracking.test_wandb_upload import ILLNESSES, impatient  # noqa: F401
from tests.tracking.tracked_sweep import log_rounds, track

pytest.importorskip("wandb_workspaces")

from gr_sweep.tracking.wandb_views import save, shown_title

NAME = 'it\'s "edges=both" <1> & a b'
"""A sweep whose name has all that is lost in a text of Python."""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edge choices, two seeds of one, a dense run, and a run in rounds, all offline."""
    folder = tmp_path_factory.mktemp("tracked") / NAME
    few: dict[str, Any] = {"num_documents": 6, "resamples": 5, "steps": 20}
    jobs = [
        write_job(folder, edges="dense", method="dense", **few),
        write_job(folder, edges="both", **few),
        write_job(folder, edges="both", seed=1, **few),
        write_job(folder, edges="act", **few),
    ]
    rounds = {
        "procedure.name": ProcedureKind.alternate,
        "procedure.attribution": Attribution.act_grad,
        "procedure.rounds": 2,
    }
    jobs.append(write_job(folder, edges="weight", settings=rounds, **few))
    write_rounds(jobs[-1], rounds=2, layers=1, units=48)
    log_rounds(jobs[-1], DOMAINS, 2)
    for job in jobs:
        track(job)
    tracking_wandb.wandb.teardown()
    return folder


@pytest.fixture
def sweep(tracked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tracked, tmp_path / NAME))


def named(spec: Any) -> Iterator[tuple[str, str]]:
    """Kind (metric or setting) and name of everything that panels of a spec name."""
    if isinstance(spec, list):
        for item in spec:
            yield from named(item)
    if not isinstance(spec, dict):
        return
    kind, config = spec.get("viewType"), spec.get("config")
    if kind is None or not isinstance(config, dict):
        for item in spec.values():
            yield from named(item)
        return
    if kind == "Weave":
        yield from (("metric", name) for name in _table_keys(config))
    for key in ("metrics", "mediaKeys"):
        yield from (("metric", name) for name in config.get(key, []))
    accessors = [column["accessor"] for column in config.get("columns", [])]
    accessors += [config[key] for key in ("xAxis", "yAxis", "zAxis") if key in config]
    for accessor in accessors:
        section, _, name = accessor.rpartition(":")
        yield ("setting" if section == "config" else "metric"), name
    if config.get("groupBy"):
        yield "setting", config["groupBy"]


def _table_keys(node: Any) -> Iterator[str]:
    """`runs.summary["KEY"]` of a Weave panel."""
    if isinstance(node, dict):
        if node.get("name") == "pick" and "inputs" in node:
            value = node["inputs"]["key"]["val"]
            yield from [value] if isinstance(value, str) else []
        for item in node.values():
            yield from _table_keys(item)
    if isinstance(node, list):
        for item in node:
            yield from _table_keys(item)


def setting(config: dict[str, Any], name: str) -> Any:
    """What W&B finds under `plan.value.kind`; raises KeyError where there is nothing."""
    node: Any = config
    for part in name.split("."):
        node = node[part]
    return node


def test_one_command_makes_a_dashboard_and_again_brings_it_up_to_date(
    sweep: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uploads, joins, saves; then the same views, nothing twice, nothing sent that is there."""
    assert main(["dashboard", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "\n5 uploaded\n" in said
    workspace, report = sorted(server.views, key=lambda view: view.type)
    assert (workspace.type, report.type) == ("project-view", "runs")
    assert f"workspace made: {server.url}/{ENTITY}/gr-sweep?nw=" in said
    assert f"report made: {server.url}/{ENTITY}/gr-sweep/reports/" in said
    assert workspace.display_name == "gr-sweep: it-s -edges-both- -1- - a b" == report.display_name

    assert not (Path(tempfile.gettempdir()) / ENTITY).exists()  # what the library makes there
    assert_every_name_is_one_that_a_run_has(server)
    text = json.dumps(workspace.spec)
    for wanted in (
        *("mean_tax", "mean_selectivity", "separability/heat_map", "separability/matrix"),
        *("eval/loss/code", "round/2/mean_leaf_tax", "cost/tokens_per_second"),
    ):
        assert json.dumps(wanted)[1:-1] in text
    names_of = [
        section["name"] for section in workspace.spec["section"]["panelBankConfig"]["sections"]
    ]
    assert {"Utility and separability", "Removal", "Cost", "Round 1", "Round 2"} <= {*names_of}

    # Only runs of this sweep, whatever its name.
    filters = [workspace.spec["section"]["runSets"][0]["filters"]] + [
        block["metadata"]["runSets"][0]["filters"]
        for block in report.spec["blocks"]
        if block["type"] == "panel-grid"
    ]
    assert {json.dumps(one["filters"]) for one in filters} == {
        json.dumps(
            [
                {
                    "key": {"section": "run", "name": "group"},
                    "op": "=",
                    "value": NAME,
                    "disabled": False,
                }
            ]
        )
    }

    # The joined metrics, beside what the run itself logged.
    runs = list(server.runs.values())
    for job in read_sweep(sweep).jobs:
        (run,) = [run for run in runs if run.display_name == job.name]
        assert job.metrics.items() <= run.summary.items()
        # The dense run is of seed 0.
        assert ("mean_tax" in run.summary) == (job.seed == 0)
        assert run.summary["train/loss"]
        assert run.config["gr_sweep"]["value"]["compared_as"] == job.edges
        if job.edges != "dense":
            assert run.summary["separability/heat_map"]["_type"] == "plotly-file"

    # Again: with its own title and text changed by somebody in between.
    report.display_name = "My report"
    server.requests.clear()
    assert main(["dashboard", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "workspace updated: " in said and "report updated: " in said and "anew" not in said
    assert "UpsertBucket" not in [name for name, _ in server.requests]
    assert [view.num_saved for view in server.views] == [2, 2]
    assert main(["dashboard", str(sweep)]) == 0
    assert [view.num_saved for view in server.views] == [3, 3]

    # From the server alone it is the same.
    of_folder = panels(workspace.spec)
    words = ["--entity", ENTITY, "--project", "gr-sweep", "--group", NAME]
    capsys.readouterr()
    assert main(["dashboard", *words, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == [NAME]
    assert [view.num_saved for view in server.views] == [3, 3]
    assert main(["dashboard", *words]) == 0
    assert [view.num_saved for view in server.views] == [4, 4]
    assert panels(workspace.spec) == of_folder
    # Of the whole project there is another.
    assert main(["dashboard", "--project", "gr-sweep"]) == 0
    assert len(server.views) == 4

    # What is no longer known goes; what the run logged stays.
    shutil.rmtree(next(path for path in sweep.iterdir() if "method=dense" in path.name))
    assert main(["dashboard", str(sweep)]) == 0
    (run,) = [run for run in runs if "edges=act" in str(run.display_name)]
    assert "mean_tax" not in run.summary
    assert {"mean_selectivity", "eval/loss/code", "separability/heat_map"} <= run.summary.keys()


@pytest.mark.slow
def test_a_real_sweep_has_what_its_dashboard_names(tmp_path: Path, server: StubServer) -> None:
    """Jobs as the command runs them: edge choices, rounds, and the baseline that joins them."""
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    words = ["debug=default", "data.documents=60", "data.vocab_size=300", "tracking=offline"]
    words += ["procedure=fixed,alternate", "edges=act,weight", "baselines=[dense]"]
    subprocess.run(
        [sys.executable, "-m", "gr_sweep", "-m", *words, f"hydra.sweep.dir={tmp_path / 'real'}"],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1", "GR_SWEEP_CACHE": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert main(["dashboard", str(tmp_path / "real")]) == 0
    assert_every_name_is_one_that_a_run_has(server)
    (workspace,) = [view for view in server.views if view.type == "project-view"]
    names = {name for name, *_ in panels(workspace.spec)}
    assert {"Utility and separability", "Edge choices", "Removal", "Rounds", "Round 1"} <= names
    assert ("metric", "mean_tax") in set(named(workspace.spec))


def assert_every_name_is_one_that_a_run_has(server: StubServer, least: int = 50) -> None:
    runs = list(server.runs.values())
    metrics = {key for run in runs for row in run.history for key in row}
    metrics |= {key for run in runs for key in run.summary}
    for view in server.views:
        names = set(named(view.spec))
        assert len(names) > least
        for kind, name in names:
            if kind == "metric":
                assert name in metrics
            else:
                assert any(_has(run.config, name) for run in runs), name


def panels(spec: dict[str, Any]) -> list[Any]:
    """What the panels of a workspace show, by section; a server keeps no order of domains."""
    found = []
    for section in spec["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config = panel["config"] | {"metrics": sorted(panel["config"].get("metrics", []))}
            found.append((section["name"], panel["viewType"], config))
    return sorted(found, key=json.dumps)


def _has(config: dict[str, Any], name: str) -> bool:
    try:
        setting(config, name)
    except (KeyError, TypeError):
        return False
    return True


@pytest.mark.parametrize("fall_ill", ILLNESSES)
@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_away_is_one_line_in_seconds(
    sweep: Path, server: StubServer, capsys: pytest.CaptureFixture[str], fall_ill: Any
) -> None:
    fall_ill(server)
    start = time.monotonic()
    assert main(["dashboard", str(sweep)]) == 2
    assert time.monotonic() - start < 150  # a slow machine's; the stub answers after 600
    said = capsys.readouterr()
    assert said.err.startswith(f"gr-sweep: W&B at {server.url} cannot be used: ")
    assert said.err.count("\n") == 1 and not said.out


@pytest.mark.usefixtures("impatient")
def test_a_server_that_refuses_the_views_leaves_none_twice(
    sweep: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The workspace is saved and the report is not; then both, each once."""
    for job in sorted(sweep.iterdir())[1:]:
        shutil.rmtree(job)
    server.ill = ("upsertView", 403)
    assert main(["dashboard", str(sweep)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gr-sweep: W&B at {server.url} cannot be used: ")
    assert said.count("\n") == 1
    server.ill = None
    assert main(["dashboard", str(sweep)]) == 0
    assert sorted(view.type for view in server.views) == ["project-view", "runs"]


@pytest.mark.slow
def test_a_run_that_the_server_has_not_whole_keeps_its_summary(
    sweep: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is written replaces a summary, and would take from it what comes later."""
    monkeypatch.setattr(dashboard, "SETTLE_S", 0.1)
    for job in sorted(sweep.iterdir())[1:]:
        shutil.rmtree(job)
    assert main(["sync", str(sweep)]) == 0
    (run,) = server.runs.values()
    run.is_open = True
    before = dict(run.summary)
    assert main(["dashboard", str(sweep)]) == 0
    assert "W&B has not all of it yet" in capsys.readouterr().out
    assert run.summary == before and "gr_sweep" not in run.config
    assert_every_name_is_one_that_a_run_has(server, least=20)
    run.is_open = False
    assert main(["dashboard", str(sweep)]) == 0
    assert "gr_sweep" in run.config


@pytest.mark.slow
def test_a_job_that_was_not_uploaded_whole_is_named_beside_the_dashboard(
    sweep: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.ill = ("/storage/", 403)
    assert main(["dashboard", str(sweep)]) == 1
    said = capsys.readouterr().out
    assert "\n5 failed\n" in said and said.count("did not take everything: HTTP 403") == 5
    assert "report made: " in said and len(server.views) == 2
    assert_every_name_is_one_that_a_run_has(server)


def test_a_project_without_runs_of_ours_is_a_line(
    server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "--project", "nope"]) == 2
    said = capsys.readouterr().err
    assert said == (f"gr-sweep: {server.url} has no finished run of gr-sweep in {ENTITY}/nope\n")


def test_without_a_key_it_is_a_line(
    sweep: Path, no_account: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([str(sweep)], ["--project", "p"], ["--project", "p", "--dry-run"]):
        assert main(["dashboard", *words]) == 2
        said = capsys.readouterr()
        assert "no W&B key is configured" in said.err
        assert said.err.count("\n") == 1 and not said.out


def test_a_title_has_nothing_that_wandb_or_an_address_refuses() -> None:
    assert shown_title("gr-sweep: a/b?c#d=e+f") == "gr-sweep: a-b-c-d-e-f"
    assert len(shown_title("x" * 500)) == 128


def test_a_sweep_with_several_groups_is_found_by_any_of_them(server: StubServer) -> None:
    """The job of the first group is removed, or an older one comes to it."""
    server.runs["x"] = StubRun("x", project="p")
    one = Dashboard(entity=None, project="p", groups=("a",), columns=(), sections=())
    both = dataclasses.replace(one, groups=("b", "a"))
    assert [is_new for *_, is_new in save(one, Server(), ENTITY)] == [True, True]
    for again in (both, one, both):
        assert [is_new for *_, is_new in save(again, Server(), ENTITY)] == [False, False]
    assert [view.num_saved for view in server.views] == [4, 4]


def test_a_report_of_somebody_else_is_not_written_to_whatever_its_title(
    server: StubServer,
) -> None:
    server.runs["x"] = StubRun("x", project="p")
    one = Dashboard(entity=None, project="p", groups=("a",), columns=(), sections=())
    theirs = StubView("1", "runs", "p", "n", one.title, "Our results.", {})
    marked = StubView("2", "runs", "p", "m", one.title, "Copy. [gr-sweep 0123456789a]", {})
    server.views += [theirs, marked]
    save(one, Server(), ENTITY)
    assert (theirs.num_saved, marked.num_saved, len(server.views)) == (1, 1, 4)
    assert theirs.description == "Our results."
