"""A search: what it asks for, what it makes of the results, and where it goes on after a kill.

Most tests let an object play the jobs, whose metrics follow from their settings.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.cli import app
from gr_sweep.cli.compose import compose
from gr_sweep.cli.search import Objective
from gr_sweep.config import Method, RunConfig, to_plain
from gr_sweep.data.prepare import text_fingerprint
from gr_sweep.errors import DataError
from gr_sweep.fingerprint import identity_of
from gr_sweep.jobdir import write_summary
from gr_sweep.metrics import registry
from gr_sweep.report import read_sweep
from gr_sweep.report.html import render
from gr_sweep.report.measures import BY_METRIC, best_axes
from tests.refused import assert_refused

pytest.importorskip("optuna")

SEARCH = ["-m", "hydra/sweeper=optuna", "tracking=off", "hydra.sweep.dir=sweep"]
SELECTIVITY = "objective=[separability/selectivity]"
BOTH = "objective=[loss/served,separability/selectivity]"


class Jobs:
    """Stands for gr_sweep.job. The more the domains share, the lower are loss and selectivity; a
    lower foreign dropout only harms. Fails with `overlap` below `broken`; `kill_at` is the call
    that is killed."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken = 0.0
        self.kill_at: int | None = None

    def run_job(self, config: RunConfig, folder: Path, *, title: str, **rest: Any) -> None:
        if len(self.ran) == self.kill_at:
            raise KeyboardInterrupt
        self.ran.append(title)
        overlap = config.data.overlap
        if overlap < self.broken:
            raise DataError("too little text")
        selectivity = 1 - overlap - 0.1 * (1 - config.route.foreign_dropout) + 0.01 * config.seed
        identity = identity_of(config, text_fingerprint(config.data, config.partition))
        summary = {
            "format": 1,
            "domains": ["code", "biology"],
            "metrics": {"mean_served_loss": 5 - overlap, "mean_selectivity": selectivity},
            "intervals": {},
            "config": to_plain(config),
            "fingerprints": identity.fingerprints,
            "environment": {},
            "started": "",
            "finished": "",
        }
        write_summary(folder / "summary.json", summary)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """An empty folder to search in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    played = Jobs()
    monkeypatch.setitem(sys.modules, "gr_sweep.job", played)  # type: ignore[arg-type]
    return played


def search(*overrides: str) -> int:
    return app.main([*SEARCH, *overrides])


def trials(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed of each trial."""
    return re.findall(r"^trial \d+ of \d+: (.*)$", capsys.readouterr().err, re.M)


def test_a_search_finds_where_separation_is_best_and_says_which_settings_matter(jobs):
    swept = ["data.overlap=interval(0,1)", "route.foreign_dropout=0,0.5,1"]
    assert search(SELECTIVITY, "hydra.sweeper.n_trials=16", *swept) == 0
    found = read_sweep(Path("sweep"))
    best = max(found.jobs, key=lambda job: job.metrics["mean_selectivity"])
    assert best.settings["data.overlap"] < 0.2
    [shares] = found.search["importance"].values()
    assert shares["data.overlap"] > 0.8 > 0.2 > shares["route.foreign_dropout"]
    assert "<h2>Search</h2>" in render(found)

    [_, *others] = [found.folder / job.name for job in found.jobs]
    assert not read_sweep(found.folder, others).search, "a report of other jobs"


def test_a_killed_search_goes_on_as_if_it_had_not_been(jobs):
    line = [BOTH, "hydra.sweeper.n_jobs=2", "data.overlap=interval(0,1)"]
    line += ["route.foreign_dropout=0,0.5,1"]
    trials = "hydra.sweeper.n_trials=13"  # the last of them are no longer random
    assert search(*line, trials, "hydra.sweep.dir=whole") == 0
    whole, jobs.ran = jobs.ran, []
    jobs.kill_at = 11
    assert search(*line, trials, "hydra.sweep.dir=killed") == 130
    jobs.kill_at = None
    assert search(*line, "hydra.sweeper.n_trials=14", "hydra.sweep.dir=killed") == 0
    assert jobs.ran[:13] == whole and len(jobs.ran) == 14


def test_of_several_seeds_a_trial_has_the_mean(jobs, capsys):
    line = [SELECTIVITY, "route.foreign_dropout=1", "data.overlap=0.5,0.25", "seed=0,2"]
    assert search(*line, "hydra.sweeper.n_trials=2") == 0
    assert sorted(trials(capsys)) == [
        "data.overlap=0.25: separability/selectivity 0.76",
        "data.overlap=0.5: separability/selectivity 0.51",
    ]
    assert len(jobs.ran) == 4


def test_settings_are_tried_once_and_a_search_ends_when_all_are(jobs, capsys):
    assert search(SELECTIVITY, "data.overlap=0.5,0.25,1", "hydra.sweeper.n_jobs=2") == 0
    assert len(jobs.ran) == len(trials(capsys)) == 3


def test_a_search_goes_on_after_trials_that_fail(jobs, capsys):
    jobs.broken = 0.5
    line = [SELECTIVITY, "data.overlap=interval(0,1)", "hydra.sweeper.n_trials=5"]
    assert search(*line) == 2
    said = trials(capsys)
    assert len(said) == 5 and 0 < sum(line.endswith(": failed") for line in said) < 5


def test_settings_that_do_not_go_together_are_no_job(jobs, capsys):
    # A lattice of three domains has too many blocks for four head groups.
    assert search(SELECTIVITY, "plan=peers,lattice", "plan.attn_shared=0.25,1.0") == 0
    [wrong] = [line for line in trials(capsys) if "separability" not in line]
    assert wrong.startswith("plan=lattice plan.attn_shared=0.25") and "head groups" in wrong
    assert len(jobs.ran) == 3


def test_a_search_without_its_objective_ends(jobs, capsys):
    line = ["objective=[robustness/relearn/ratio]", "data.overlap=interval(0,1)", "baselines=[]"]
    assert search(*line) == 2
    assert "no finished job has robustness/relearn/ratio" in capsys.readouterr().err
    assert len([title for title in jobs.ran if "method" not in title]) == 3


def test_baselines_are_those_that_the_objectives_need(jobs):
    line = [*SEARCH[1:], "plan=forget", "plan.forget=[biology]", "train.block_lr=interval(1,4)"]
    added = compose([*line, "hydra.sweeper.n_jobs=3"], multirun=True).jobs[:-3]
    assert [job.config.method.name for job in added] == [Method.dense, Method.filtered]
    assert not [job for job in compose([*line, BOTH], multirun=True).jobs if job.is_baseline]


def test_the_axes_of_the_report_are_the_objectives():
    names = ("separability/removal", "utility/expert_tax")
    keys = [Objective.of(name).measure.metric.key for name in names]
    assert best_axes([], keys) == (BY_METRIC[registry.EXPERT_TAX], BY_METRIC[registry.REMOVAL])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data.overlap=interval(1,0)", "expected interval(LOW,HIGH) with LOW below HIGH"),
        ("train.lr=tag(log,interval(0,1))", "LOW above 0"),
        ("train.lr=tag(lgo,interval(0.1,1))", "or tag(log,interval(LOW,HIGH))"),
        ("data.overlap=interval(0,1.5)", "invalid value for data.overlap: 1.5"),
        ("data.overlap=0,1,2", "invalid value for data.overlap: 2"),
        ("train.steps=interval(10,20)", "train.steps: Value '13.82' of type 'float'"),
        ("edges=act seed=0,1", "nothing to search"),
        ("hydra.sweeper.n_trials=0 edges=act,both", "invalid value for hydra.sweeper.n_trials: 0"),
        ("objective=[utility/served_taks] edges=act,both", "did you mean utility/served_tax?"),
        ("objective=[utility/transfer] edges=act,both", "invalid value for objective"),
        ("hydra/sweeper=basic data.overlap=interval(0,1)", "add hydra/sweeper=optuna"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(jobs, tmp_path, capsys, words, said):
    assert_refused([*SEARCH, *words.split()], said, tmp_path, capsys)


def test_a_study_may_say_what_is_searched(jobs, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    study = """# @package _global_
defaults: [{override /hydra/sweeper: optuna}]
objective: [separability/selectivity]
hydra: {mode: MULTIRUN, sweeper: {n_trials: 3, params: {data.overlap: "interval(0,1)"}}}
"""
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(study)
    assert app.main(["--config-dir", "own", "experiment=mine", "tracking=off"]) == 0
    assert len(jobs.ran) == 3


def test_a_missing_package_names_its_extra(jobs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert_refused([*SEARCH, "edges=act,both"], "'gr-sweep[search]'", tmp_path, capsys)


@pytest.mark.slow
def test_a_search_over_real_jobs_has_their_known_frontier(tmp_path, monkeypatch):
    """Separation falls as overlap rises, and so does the loss: all three values are best for
    someone."""
    monkeypatch.chdir(tmp_path)
    tiny = [
        *("debug=default", "edges=weight", "plan.mlp_shared=0.25", "eval.samples=0"),
        *("train.log_every=20", "train.steps=40", "train.lr=0.008", "data.documents=100"),
        *("train.checkpoint_every=null", "data.cache=cache"),
    ]
    assert app.main([*SEARCH, *tiny, BOTH, "data.overlap=0,0.5,1"]) == 0
    metrics = {job.settings["data.overlap"]: job.metrics for job in read_sweep(Path("sweep")).jobs}
    for name in ("mean_selectivity", "mean_served_loss"):
        assert metrics[0][name] > metrics[0.5][name] > metrics[1][name]
    assert json.loads(Path("sweep/search.json").read_text())["trials"] == 3
