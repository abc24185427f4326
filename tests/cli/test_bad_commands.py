"""Commands and configs that are wrong: one line that says what is wrong, status 2, in time, and no
file is changed. One case for each mechanism; tests/cli/test_compose.py has the usual slips.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gr_sweep
import gr_sweep.job
from gr_sweep.cli.compose import compose
from gr_sweep.errors import GrSweepError
from tests.refused import assert_refused, contents, is_one_line, within

LONG = "x" * 20_000

COMMANDS = """
~train.steps                            | does not support deletion
~partition.domains.law                  | this setting does not exist
model=hf model.path=a/b/c               | invalid value for model.path: 'a/b/c'
train.steps=99999999999999999999        | expected a number of at most 9007199254740992
data.vocab_size=70000000000             | expected a number at least 257 and at most 16777216
train.batch_sequences=7                 | use 6 or 9
train.batch_sequences=3 route.foreign_dropout=0.9 | use 0.875 or 1, or train.batch_sequences=6
procedure=alternate train.steps=40 train.batch_sequences=12 route.foreign_dropout=0.9 | use 0.875
baselines=[dense]                       | add -m
data=local data.root=afile              | afile is not a folder; one file for all domains needs
partition.domains.code.pattern='*'      | expected a regular expression
method.fixes={data:{weights:{code:x}}}  | invalid value for data.weights.code
model=[tiny,nano]                       | -m model=A,B runs several
model=base_model                        | invalid value for model: 'base_model'; expected one of
~model                                  | invalid value for model: '~model'; expected one of
experiment=../edges                     | did you mean edges?
edges = act                             | unknown verb 'edges'
train.steps=${oc.env:NOPE}              | Environment variable 'NOPE' not found
seed=${eval:1+1}                        | Unsupported interpolation type eval
hydra.run.dir=                          | invalid value for hydra.run.dir: ''
hydra.run.dir=afile/x                   | Not a directory
hydra.output_subdir=                    | invalid value for hydra.output_subdir: ''
hydra.output_subdir=../x                | invalid value for hydra.output_subdir: '../x'
hydra.job.num=3                         | hydra.job.num=3: gr-sweep sets this
hydra.runtime.cwd=/x                    | hydra.runtime.cwd=/x: gr-sweep sets this
hydra.job.env_copy=[NOPE]               | cannot be composed: 'NOPE'
hydra.job.chdir=true                    | does not support hydra.job.chdir
+hydra.callbacks.x._target_=no.Such     | hydra.job.env_set and hydra.callbacks
hydra.launcher._target_=os.system       | launchers are basic, local_parallel and slurm
hydra/launcher=slurm hydra.launcher.nope=1 | hydra.launcher has no setting 'nope'; did you mean
-m seed=0,1 hydra.sweep.subdir=../../x  | expected a folder within that of the sweep
-m seed=0,1 hydra.sweep.subdir=${nope}  | Interpolation key 'nope' not found
-m seed=range(2,0)                      | seed=range(2,0) has no values
-m seed=range(0,10,0)                   | seed=range(0,10,0): the step of a range must not be 0
-m seed=range(0,1e999)                  | seed=range(0,1e999): cannot convert Infinity
-m experiment=edges,seed_question       | experiment=edges changes settings of hydra
-m seed=range(0,1000) train.steps=range(1,1000) | more than 100000 jobs
-m train.lr=range(0,1,0.000000001)      | more than 100000 jobs
-m seed=interval(0,1)                   | seed=interval(0,1): Can only enumerate CHOICE and RANGE
train=3                                 | train=3: it is a group of settings
edges=null                              | invalid value for edges: 'null'; expected one of act, both
-m data.weights.code=1,x                | invalid value for data.weights.code
tracking.project=a/b                    | invalid value for tracking.project: 'a/b'; expected
-m tracking.tags=[xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx] | 1 to 64
-m seed=0,1 tracking.tags=[mine,'']     | invalid value for tracking.tags: ''
-m tracking.group=x tracking.entity=a/b | invalid value for tracking.entity: 'a/b'
--cfg nope                              | invalid choice: 'nope'
--cfg job --package nope                | the config has no such package
-m seed=0,1 --cfg job                   | this command has 2; leave out -m
-m seed=0,1 --info                      | leave out -m
--info config --config-dir nope         | config folder 'nope' is not a folder
--config-dir afile                      | config folder 'afile' is not a folder
data=local data.paths=[a]               | data.paths=[a]: expected settings, such as {a: b}
-m hydra.sweep.dir=a,b                  | hydra.sweep.dir=a,b: a command has one value of this
--shell-completion                      | such as install=bash
--shell-completion query=bash query=zsh | such as install=bash
-x                                      | unknown flag -x
--config-name ../x                      | Cannot find primary config '../x'
report .                                | . holds no job
status afile                            | afile is not a folder
"""

CASES = []
for line in COMMANDS.strip().splitlines():
    words, said = line.rsplit(" | ", 1)
    CASES.append((words.split(), said.strip()))

CASES += [
    (["a\nb=1"], "cannot read"),
    (["data=local", "data.root='\x1b[31mred'"], r"data.root=\x1b[31mred is not a folder"),
    ([f"hydra.run.dir={LONG}"], "File name too long"),
    ([f"{LONG}=1"], "no setting 'xxx"),
    (['data.cache="\udcff"'], "data.cache: '\\udcff'; expected text in UTF-8"),
    (['hydra.run.dir="\udcff"'], r"hydra.run.dir=\udcff cannot be a folder"),
    (["-m", f"seed=0,[{'9' * 5000}]"], "a number of the command cannot be read"),
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


@pytest.mark.parametrize("argv", [["tracking=off"], ["tracking=auto", "data.cache=x"]])
def test_a_user_without_a_home_is_told_what_to_set(here, capsys, monkeypatch, argv):
    def no_entry(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "GR_SWEEP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert_refused(argv, "set HOME, or give data.cache=FOLDER and tracking=off", here, capsys)


def test_a_long_error_is_cut_and_stays_in_one_line():
    error = str(GrSweepError(LONG + "\x1b\n" + LONG))
    assert is_one_line(error) and len(error) < 2100


HEAD = "defaults: [base_partition, _self_]\n"
FILES = {
    "broken yaml": ("partition=x", "name: [", "config cannot be composed"),
    "unknown key": ("partition=x", f"{HEAD}colour: red\n", "no setting 'colour'; expected one of"),
    "python tag": (
        "partition=x",
        f"{HEAD}name: !!python/object/apply:os.system ['touch ran']\n",
        "could not determine a constructor",
    ),
    "list at the top": ("partition=x", "- law\n", "config partition/x: "),
    "list of domains": ("partition=x", f"{HEAD}domains: [a, b]\n", "got a list"),
    "Latin-1": (
        "partition=x",
        f"{HEAD}name: caf\u00e9".encode("latin-1"),
        "x.yaml is not UTF-8",
    ),
    "its own default": ("partition=x", "defaults: [x]\n", "leads back to its own file"),
    "deep": ("partition=x", "a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "no schema": ("--config-name partition/x", "seed: 1\n", "schema"),
}


@pytest.mark.parametrize(("typed", "content", "said"), FILES.values(), ids=FILES)
def test_a_wrong_config_file_of_the_user_is_one_line(here, capsys, typed, content, said):
    path = here / "own" / "partition" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(["--config-dir", "own", *typed.split()], said, here, capsys)


def test_the_process_prints_only_that_line(here):
    done = subprocess.run(
        [sys.executable, "-m", "gr_sweep", "edges=\udcff"],
        env={"PYTHONPATH": str(Path(gr_sweep.__file__).parents[1]), "HOME": str(here)},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"gr-sweep: ") and done.stderr.count(b"\n") == 1


KEYS = st.sampled_from(
    [
        "seed", "edges", "train", "plan.layers", "data.weights", "data.weights.code",
        "partition.domains", "partition.unlabelled", "method.fixes", "procedure.rounds",
        "eval.relearn_lrs", "hydra.run.dir", "hydra.verbose", "baselines", "~seed", "++train.x",
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
VALUES = st.one_of(
    st.lists(ATOMS, max_size=4).map("".join),
    st.lists(ATOMS, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    st.dictionaries(ATOMS, ATOMS, max_size=2).map(
        lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items.items()) + "}"
    ),
)


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
