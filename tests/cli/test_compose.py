"""Command lines and the jobs that come of them; what is refused, and in which words."""

import json
import re
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from gr_sweep.cli.compose import Command, compose
from gr_sweep.cli.composer import Composer
from gr_sweep.cli.help import conf_dir
from gr_sweep.cli.schema import DEFAULT_GROUPS
from gr_sweep.config import Edges, PlanKind
from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.fingerprint import fingerprint
from gr_sweep.planning import make_plan, named_shape

NEEDS = {
    "plan=forget": ["plan.forget=[biology]"],
    "method=filtered": ["method.without=[biology]"],
    "method=filtered_observed": ["method.without=[biology]"],
    "method=sgtm": ["plan.forget=[biology]"],
    "method=era": ["plan.forget=[biology]"],
    "method=gram": ["plan.forget=[biology]"],
    "method=flexolmo": ["plan.forget=[biology]"],
    "model=hf": ["model.path=somewhere"],
    "data=local": ["data.root=."],
    "data=hub": ["data.sources={code:{path:a/b},biology:{path:a/c},creative:{path:a/d}}"],
}
"""What a choice does not work without."""

CHOICES = {
    group: sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    for group in DEFAULT_GROUPS
    if group != "experiment"  # whole sweeps; composed by a test of their own
}
ALONE = ("method", "partition", "plan", "procedure")
"""Groups whose choices do not go with every choice of the others."""
ONE_OF_EACH = [
    [f"{group}={names[at % len(names)]}" for group, names in CHOICES.items() if group not in ALONE]
    for at in range(max(map(len, CHOICES.values())))
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def single(*overrides: str):
    """The config of the one job of a command line."""
    [job] = compose(overrides).jobs
    return job.config


def sweep(*overrides: str) -> Command:
    """The jobs of a multirun."""
    return compose(overrides, multirun=True)


@pytest.mark.parametrize(
    "choices",
    [*ONE_OF_EACH, *([f"{group}={name}"] for group in ALONE for name in CHOICES[group])],
    ids=" ".join,
)
def test_every_choice_of_every_group_composes_and_validates(choices, tmp_path, monkeypatch):
    # There is no key.
    monkeypatch.setattr("gr_sweep.cli.check_fit.check_tracking", lambda tracking: None)
    needs = [need for choice in choices for need in NEEDS.get(choice, [])]
    assert compose([*choices, *needs]).jobs


def test_dictionaries_take_new_keys_without_plus_signs():
    config = single(
        "data.weights.code=2",
        "data.weights={biology:3}",
        "partition.unlabelled={code:0.1,*:0}",
        "train.batch_sequences=60",
    )
    assert config.data.weights == {"code": 2.0, "biology": 3.0}
    assert config.partition.unlabelled == {"code": 0.1, "*": 0}
    assert single("partition.domains.law={count:2}").partition.domains["law"].count == 2
    sources = [f"data.sources.{name}.path=a/{name}" for name in ("code", "biology", "creative")]
    assert single("data=hub", *sources).data.sources["code"].path == "a/code"


def test_a_sweep_folder_names_what_is_swept_and_its_jobs_how_they_differ():
    command = sweep("edges=both,act", "model=tiny", "tracking=off")
    assert re.fullmatch(r"outputs/edges-[0-9a-f]{8}", str(command.folder))
    assert [job.title for job in command.jobs] == ["edges=both", "edges=act"]
    names = [job.folder.name for job in command.jobs]
    digits = [fingerprint(job.config)[:8] for job in command.jobs]
    assert names == [f"edges=both-{digits[0]}", f"edges=act-{digits[1]}"]
    assert all(job.folder.parent == command.folder for job in command.jobs)
    more = sweep("edges=weight,act,both", "tracking=off", "model=tiny").jobs
    assert {job.folder for job in more} > {job.folder for job in command.jobs}
    assert str(sweep("edges=both,act", "seed=0,1").folder) == "outputs/edges-seed"
    assert sweep("edges=both,act", "model=mini").folder != command.folder


def test_name_names_a_sweep_or_a_single_job():
    command = sweep("name=first try", "edges=both,act", "model=tiny")
    assert str(command.folder) == "outputs/first-try"
    assert command.jobs[0].title == "edges=both"
    [job] = compose(["name=first", "edges=both"]).jobs
    assert job.title == "first" and job.folder.name.startswith("first-")
    with pytest.raises(ConfigError, match="name names the whole sweep"):
        sweep("name=a,b")
    for wrong in ("..", "runs"):
        with pytest.raises(ConfigError, match="invalid value for name"):
            sweep(f"name={wrong}", "edges=both,act")


def test_a_job_that_is_typed_in_another_way_keeps_its_folder(tmp_path):
    folder = f"hydra.sweep.dir={tmp_path}"
    first = sweep("edges=both,act", folder).jobs[0].folder
    first.mkdir()
    again, new = sweep("seed=0,1", "edges=both", folder).jobs
    assert again.folder == first
    assert new.folder.name.startswith("seed=1-")
    # Text around the name is not added again.
    named = f"hydra.run.dir='{tmp_path}/my-{{job}}'"
    [single] = compose([named]).jobs
    single.folder.mkdir()
    assert compose([named]).jobs[0].folder == single.folder


def test_a_job_alone_is_named_by_all_that_counts():
    [job] = compose(["seed=1", "edges=weight", "tracking=off", "data.cache=x"]).jobs
    assert str(job.folder) == f"outputs/runs/edges=weight,seed=1-{fingerprint(job.config)[:8]}"
    [same] = compose(["edges=weight", "seed=1"]).jobs
    assert same.folder == job.folder
    [default] = compose(["data=local", "data.root=/", "model.path=null"]).jobs
    assert default.folder.name.startswith("data=local-"), "paths of the machine are in no name"
    assert compose([]).jobs[0].folder.name.startswith("default-")


def test_equal_jobs_are_run_once():
    assert len(sweep("seed=0,0,1").jobs) == 2
    command = sweep("method=dense,routed", "edges=both,act")
    assert [job.title for job in command.jobs] == [
        "method=dense",
        "method=routed edges=both",
        "method=routed edges=act",
    ]


@pytest.mark.parametrize(
    ("line", "seeds"),
    [
        (["data.seed=${seed}", "seed=0,1"], [(0, 0), (1, 1)]),
        (["seed=${train.steps}", "train.steps=3,4"], [(3, 0), (4, 0)]),
        (["experiment=mine"], [(3, 3), (4, 4)]),
    ],
)
def test_an_interpolation_is_resolved_for_each_job(tmp_path, line, seeds):
    study = "# @package _global_\nhydra: {sweeper: {params: {seed: '3,4', data.seed: '${seed}'}}}\n"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(study)
    jobs = compose(line, multirun=True, config_dir=str(tmp_path)).jobs
    assert [(job.config.seed, job.config.data.seed) for job in jobs] == seeds


def test_tokens_that_are_typed_replace_the_steps(monkeypatch):
    monkeypatch.setenv("TOK", "500000")
    for line, tokens in (
        ("train.tokens=3000", 3000),
        ("train.tokens=${oc.env:TOK}", 500_000),
        ("debug=limit train.tokens=3000", 3000),
    ):
        train = single(*line.split(), "train.device=cpu").train
        assert (train.steps, train.tokens) == (None, tokens), line
    assert single("train.tokens=null").train.steps == 160


def test_domains_that_are_given_replace_those_of_the_partition():
    config = single("partition.domains={biology:{},creative:{}}", "partition.domains.law={count:3}")
    assert list(config.partition.domains) == ["biology", "creative", "law"]


def test_an_experiment_is_a_sweep_and_what_is_typed_replaces_what_it_sweeps():
    command = compose(["experiment=edges", "seed=0", "edges=none,act"])
    assert command.is_multirun
    assert [job.config.edges.value for job in command.jobs] == ["none", "act"]


@pytest.mark.parametrize("file", sorted((conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_opens_with_the_line_to_run_it(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("DIR").mkdir()
    lines = file.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    [word, *overrides] = lines[1].removeprefix("# ").split()
    assert word == "gr-sweep" and f"experiment={file.stem}" in overrides
    overrides = [override for override in overrides if override != "-m"]
    swept = OmegaConf.load(file).hydra.sweeper.params
    # Each method, with the first value of whatever else is swept.
    for key, value in swept.items():
        if key not in ("method", "seed"):
            first, closed, _ = str(value).partition("},")
            overrides.append(f"{key}={first}}}" if closed else f"{key}={first.split(',')[0]}")
    overrides.append("seed=0")
    assert compose(overrides, multirun="-m" in lines[1]).jobs


def test_a_method_overrules_typed_settings():
    config = single("method=sgtm", "plan.forget=[biology]", "edges=act", "plan=peers")
    assert config.plan.kind is PlanKind.forget and config.plan.forget == ["biology"]
    assert config.edges is Edges.weight and config.method.fixes == {}
    assert type(config.route.foreign_dropout) is float
    same = single("method=sgtm", "plan.forget=[biology]", "edges=both")
    assert fingerprint(config) == fingerprint(same)


@pytest.mark.parametrize(
    ("method", "shared", "core", "block"),
    [
        *(("gram", 0.909, 768, 77), ("era", 0.97, 768, 24), ("sgtm", 0.984375, 756, 12)),
        ("flexolmo", 0.5, 768, 767),
    ],
)
def test_a_block_of_a_published_method_has_its_published_width_unless_the_user_says_another(
    method, shared, core, block
):
    """A tenth of the MLP, 1/32, 1/64 and all; of all but sgtm beside a core as wide as the dense
    MLP."""
    settings = [f"method={method}", "plan.forget=[biology]"]
    config = single(*settings)
    assert config.plan.mlp_shared == shared
    assert make_plan(config, named_shape(config)).splits[0, "mlp"].sizes == (core, block)
    assert single(*settings, "plan.mlp_shared=0.75").plan.mlp_shared == 0.75
    mixed = sweep(f"method=routed,{method}", "plan=forget", "plan.forget=[biology]")
    assert [job.config.plan.mlp_shared for job in mixed.jobs] == [0.5, shared]


@pytest.mark.parametrize(
    "line",
    [
        ["plan=forget,tree", "edges=weight", "+data.weights.code=1,2", "plan.forget=[biology]"],
        ["experiment=label_noise", "scale=cpu", "seed=0", "method=routed", "baselines=[]"],
    ],
)
def test_jobs_of_a_sweep_are_composed_as_each_alone(line):
    command = sweep(*line)
    for job in (command.jobs[0], command.jobs[-1]):
        typed = [line.lstrip("+") for line in job.lines]
        alone = single(*typed, "hydra.mode=RUN")
        assert job.config == alone, job.title
        cfg = command.composer.compose(job.lines)
        hydras = hydra.compose("config", job.lines)
        assert Composer(typed).compose(job.lines) == hydras
        assert cfg == hydras, "as Hydra composes it"


def test_config_dir_is_searched_beside_hydras_search_path(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "partition").mkdir(parents=True)
        text = f"defaults: [base_partition, _self_]\nname: {name}\ndomains: {{a: {{}}, b: {{}}}}\n"
        (tmp_path / name / "partition" / f"{name}.yaml").write_text(text)
    for name in ("one", "two"):
        line = [f"partition={name}", f"hydra.searchpath=[file://{tmp_path / 'two'}]"]
        [job] = compose(line, config_dir=str(tmp_path / "one")).jobs
        assert job.config.partition.name == name


LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 8}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
FORGET = ["plan=forget", "plan.forget=[biology]", "plan.attn_shared=0.5"]
CHECKPOINTS = {
    "nothing": (None, [], "config.json cannot be used"),
    "heads": (GPT2, ["plan.attn_shared=0"], "2 head groups"),
    "positions": (GPT2, ["train.sequence_length=513"], "=513 is longer than the 512 positions"),
    "whole attention": (LLAMA | {"model_type": "olmo2"}, FORGET, "normalises q and k across all"),
    "layers": (LLAMA, ["plan.layers=[2]"], "from 0 to 1"),
    "adapter_config.json": ({"base_model_name_or_path": "x/y"}, [], "an adapter .* merge it"),
    "x.gguf": ({}, [], r"use model.path=.* model.gguf_file=x.gguf"),
    "compiled experts": (MIXTRAL, ["train.compile=true"], "set train.compile=false"),
    "few experts": (MIXTRAL, ["plan.mlp_shared=0.9"], "leaves 1 of 8 experts to 3 blocks"),
    "family": ({"model_type": "t5"}, [], r"'t5' cannot be routed"),
    "quantised": ({"model_type": "llama", "quantization_config": {"bits": 4}}, [], "are quantised"),
}
"""What config.json says, or another file; words of the command; and the error."""


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_is_refused_before_any_job(name, tmp_path):
    content, words, error = CHECKPOINTS[name]
    files = {name if "." in name else "config.json": content} if content is not None else {}
    for file, values in files.items():
        (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises((ConfigError, PlanError), match=error):
        compose(["model=hf", f"model.path={tmp_path}", *words])
    if name == "heads":
        assert compose(["model=hf", f"model.path={tmp_path}"]).jobs
