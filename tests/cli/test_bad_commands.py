"""Commands and configs that are wrong: one line that says what is wrong, status 2, in time, and no
file is changed. One case for each mechanism.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gr_sweep.job
from gr_sweep.cli.compose import compose
from gr_sweep.errors import GrSweepError
from tests.refused import assert_refused, contents, is_one_line, within

LONG = "x" * 20_000

COMMANDS = """
~train.steps                            | settings cannot be deleted
trian.steps=1                           | no setting 'trian'; did you mean train? expected one of
train.stesp=1                           | train has no setting 'stesp'; did you mean steps? expected
edges=weigth                            | invalid value for edges: 'weigth'; did you mean weight?
baselines=[x]                           | invalid value for baselines[0]: Invalid value 'x'
train=5                                 | train is a group of settings; set them one by one
train.steps=abc                         | train.steps: Value 'abc' of type 'str' could not be
edges=both,act                          | edges=both,act has several values: add -m
plan.mlp_shared=1.5                     | plan.mlp_shared: 1.5; expected a number at least 0 and
train.lr=nan                            | train.lr: nan; expected a finite number
partition.domains={a:{}} method=dense data.spurious=0.1 | data.spurious=0.1 needs a domain beside a
partition.domains={a:{}} method=dense partition.mislabelled=0.1 | needs a domain beside a
data.split=lines                        | data.split: 'lines'; expected paragraphs, a number of
partition.unlabelled={code:2}           | partition.unlabelled.code: 2; expected a number
plan=forget plan.forget=[maths]         | plan.forget: unknown domain 'maths'
train.steps=400 train.tokens=1000       | train.steps=400 and train.tokens=1000; give one of them
train.tokens=20y                        | train.tokens: '20y'; expected a number of tokens above 0
train.tokens=20x model=hf model.path=a/b | model.path=a/b: its config.json is
train.mesh=2                            | train.mesh: 2; expected auto, or [replicas, shards]
train.micro_batch_sequences=5           | not a multiple of train.micro_batch_sequences=5
train.schedule=wsd train.warmup=0.5 train.decay=0.6 | add up to more than 1
method=filtered                         | method=filtered needs method.without
plan.core=frozen plan=none              | plan=none has none
plan.core=frozen procedure=alternate train.batch_sequences=12 | procedure=alternate trains the
procedure=alternate procedure.rounds=1 plan=forget plan.forget=[code] route.token_bias=-4 | does not
procedure=branch plan=none              | needs blocks beside the core; plan=none has
procedure=branch plan=lattice           | it has blocks of several domains
procedure=branch plan.core=frozen       | plan.core=frozen does not work with procedure=branch
procedure=branch method=random          | use method=routed, btx or flexolmo
procedure=branch procedure.copies=true procedure.trunk=0 | procedure.trunk above 0
procedure=alternate procedure.children=5 train.batch_sequences=12 | does not split over 15 domains
procedure=alternate procedure.dense=1 train.batch_sequences=12 | none of them to route
model=hf model.path=a/b/c               | invalid value for model.path: 'a/b/c'
train.steps=99999999999999999999        | expected a number of at most 9007199254740992
train.batch_sequences=7                 | use 6 or 9
baselines=[dense]                       | add -m
data=local data.paths={code:afile}      | no text for biology, creative
data=hub data.sources={code:{path:a/b}} | no data set for source biology
data=local data.root=afile              | afile is not a folder; one file for all domains needs
partition.domains.code.pattern='*'      | expected a regular expression
method.fixes={data:{weights:{code:x}}}  | invalid value for data.weights.code
model=[tiny,nano]                       | -m model=A,B runs several
train.steps=${oc.env:NOPE}              | Environment variable 'NOPE' not found
seed=${hydra:job.num}                   | or follow ${hydra:...}
hydra.job.chdir=true                    | does not support hydra.job.chdir
hydra/launcher=slurm hydra.launcher.nope=1 | hydra.launcher has no setting 'nope'; did you mean
-m seed=0,1 hydra.sweep.subdir=../../x  | expected a folder within that of the sweep
-m baselines=[dense] train.lr=${plan.mlp_shared} | give values instead of ${...}
-m seed=range(2,0)                      | seed=range(2,0) has no values
-m experiment=edges,seed_question       | experiment can change what is swept
-m seed=range(0,1000) train.steps=range(1,1000) | more than 100000 jobs
tracking.project=a/b                    | invalid value for tracking.project: 'a/b'; expected
--config-dir afile                      | config folder 'afile' is not a folder
-x                                      | unknown flag -x
bench step --adapters embd=1            | invalid value for --adapters: 'embd=1'
report .                                | . holds no job
status afile                            | afile is not a folder
"""

CASES = []
for line in COMMANDS.strip().splitlines():
    words, said = line.rsplit(" | ", 1)
    CASES.append((words.split(), said.strip()))

CASES += [
    (["a\nb=1"], "cannot read"),
    (["train.steps=" + "9" * 5000], "an override cannot be read: Exceeds the limit"),
    (["data.weights=" + "[" * 1000 + "]" * 1000], "settings are nested too deeply"),
    (["data=local", "data.root='\x1b[31mred'"], r"data.root=\x1b[31mred is not a folder"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file in it to type commands in; a job that would run fails."""

    def run_job(*_: object, **rest: object) -> None:
        pytest.fail("a job was run")

    (tmp_path / "afile").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(gr_sweep.job, "run_job", run_job)
    return tmp_path


@pytest.mark.parametrize(("argv", "said"), CASES, ids=[ascii(" ".join(c))[:50] for c, _ in CASES])
def test_a_wrong_command_is_one_line(here, capsys, argv, said):
    assert_refused(argv, said, here, capsys)


def test_a_long_error_is_cut_and_stays_in_one_line():
    error = str(GrSweepError(LONG + "\x1b\n" + LONG))
    assert is_one_line(error) and len(error) < 2100


HEAD = "defaults: [base_partition, _self_]\n"
FILES = {
    "broken yaml": ("partition=x", "name: [", "config cannot be composed"),
    "itself": ("partition=x", "defaults: [x, _self_]\n", "a config names itself in its defaults"),
    "unknown key": ("partition=x", f"{HEAD}colour: red\n", "no setting 'colour'; expected one of"),
    "python tag": (
        "partition=x",
        f"{HEAD}name: !!python/object/apply:os.system ['touch ran']\n",
        "could not determine a constructor",
    ),
}


@pytest.mark.parametrize(("typed", "content", "said"), FILES.values(), ids=FILES)
def test_a_wrong_config_file_of_the_user_is_one_line(here, capsys, typed, content, said):
    path = here / "own" / "partition" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert_refused(["--config-dir", "own", *typed.split()], said, here, capsys)


KEYS = st.sampled_from(
    [
        "seed", "edges", "train", "plan.layers", "data.weights", "data.weights.code",
        "partition.domains", "partition.unlabelled", "method.fixes", "procedure.rounds",
        "eval.relearn_lrs", "hydra.run.dir", "baselines", "~seed", "++train.x",
    ]
)  # fmt: skip
ATOMS = st.one_of(
    st.sampled_from(
        ["act", "nano", "null", "true", "nan", "inf", "-1", "0", "1", "1e9", "1.5", "code",
         "'a b'", "''", "'", "[", "]", "{", "}", ",", ":", "=", "${seed}", "${", "\\", "*", "(",
         "range(0,1)"]
    ),
    st.text(max_size=5),
)  # fmt: skip
VALUES = st.lists(ATOMS, max_size=4).map("".join)


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(KEYS, VALUES).map("=".join), min_size=1, max_size=3), st.booleans())
@example(["partition.domains={a:1}"], False)
@example(["procedure=alternate", "procedure.rounds=30"], False)
def test_any_command_composes_or_is_refused_in_one_line(here, overrides, is_sweep):
    before = contents(here)
    with within():
        try:
            assert compose(overrides, multirun=is_sweep).jobs
        except GrSweepError as error:
            assert is_one_line(str(error))
    assert contents(here) == before
