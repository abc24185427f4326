"""What the loader gives is what Hydra's own gives, whatever came before."""

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from gr_sweep.cli import compose as composing
from gr_sweep.cli.compose import compose


def plain(cfg: DictConfig) -> object:
    return OmegaConf.to_container(cfg, resolve=False)


def test_jobs_of_one_sweep_are_composed_as_each_alone():
    command = compose(["edges=both,act", "seed=0,1", "data.weights.code=2"], multirun=True)
    others = ConfigLoaderImpl(command.loader.get_search_path())
    for job in command.jobs:
        cfg = command.loader.load_sweep_config(command.hydra_config, job.overrides)
        fresh = others.load_sweep_config(command.hydra_config, job.overrides)
        assert plain(cfg) == plain(fresh)
        # What is done to one is not seen in the next one.
        OmegaConf.set_struct(cfg, False)
        cfg.data.weights.biology, cfg.train.lr, cfg.hydra.job.num = 3, 7, 7


def test_what_a_job_s_process_is_sent_holds_nothing_that_was_read():
    line = ["edges=both,act", "model=tiny"]
    command = compose(line, multirun=True)
    fresh = ConfigLoaderImpl(command.loader.get_search_path())
    assert len(pickle.dumps(command.loader)) < 2 * len(pickle.dumps(fresh))
    sent = pickle.loads(pickle.dumps(command.loader))
    cfg = sent.load_sweep_config(command.hydra_config, command.jobs[0].overrides)
    assert cfg.edges.name == "both"


def test_a_command_is_the_same_with_hydra_s_own_loader(monkeypatch: pytest.MonkeyPatch):
    line = ["edges=both,act", "hydra/launcher=slurm", "debug=default", "model.size=tiny"]
    ours = compose(line, multirun=True)
    monkeypatch.setattr(composing, "Loader", ConfigLoaderImpl)
    hydras = compose(line, multirun=True)
    assert ours.jobs == hydras.jobs and plain(ours.hydra_config) == plain(hydras.hydra_config)


def test_another_search_path_is_another_set_of_files(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text("defaults:\n  - tiny\n")
    loader = compose(["model=tiny"]).loader
    path = [f"hydra.searchpath=[{tmp_path}]"]
    for overrides, is_there in ([], False), (path, True), ([], False):
        options = loader.get_group_options("model", config_name="config", overrides=overrides)
        assert ("own" in options) == is_there


def test_a_file_that_changes_between_two_commands_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(composing.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(composing, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.setattr("gr_sweep.cli.schema.conf_dir", lambda: tmp_path / "conf")
    path = tmp_path / "conf" / "debug" / "default.yaml"
    found = []
    for steps in (6, 9):
        path.write_text(path.read_text().replace("  steps: 6", f"  steps: {steps}"))
        os.utime(path, ns=(time.time_ns() + steps * 10**9,) * 2)
        found += [job.config.train.steps for job in compose(["debug=default"]).jobs]
    assert found == [6, 9]
