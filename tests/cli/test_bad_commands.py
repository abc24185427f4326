"""A corpus of command lines and configs that nobody can mean: each is one line that says what is
wrong, status 2, in time, and no file is changed.

On top of tests/cli/test_compose.py and test_app.py, which have the usual slips.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gr_sweep
import gr_sweep.job
from gr_sweep.cli.compose import compose
from gr_sweep.cli.overrides import MAX_JOBS
from gr_sweep.errors import GrSweepError
from tests.refused import assert_refused, contents, is_one_line, within

LONG = "x" * 20_000

SETTINGS = """
~model                                  | ~model: every job needs a choice of model
~edges                                  | every job needs a choice of edges
~model=tiny                             | ~model=tiny: every job needs a choice
~train.steps                            | ~train.steps: a setting has a value always
~data.weights                           | ~data.weights: a setting has a value always
~nope                                   | no setting 'nope'
++modle=tiny                            | did you mean model?
model.size=                             | model.size='' is unknown; choose one of tiny
model.size=null                         | no model given: choose a size
model=hf                                | no model given
model=hf model.path=                    | model.path is empty
model=hf model.path=.                   | config.json cannot be read
model=hf model.path=/dev/null           | config.json cannot be read (Not a directory)
model=hf model.path=../../nowhere       | neither a folder nor a name on the Hugging Face Hub
model=hf model.path=a/b/c               | neither a folder nor a name on the Hugging Face Hub
model.intermediate_size=0               | is too small; give 1 or more
model.intermediate_size=1e3             | give a whole number or null
model.intermediate_size=99999999999999999 | is too large; give 16777216 at most
model.gguf_file=x                       | which is not given
model=hf model.path=. plan.full_width=true | which the checkpoint . does not allow
train=fast                              | train=fast is not right; give a group of settings (steps
train=[1]                               | give a group of settings
train.steps=nan                         | train.steps=nan is not right
train.steps=0                           | is too small; give 1 or more
train.steps=true                        | train.steps=true is not right
train.steps=[1]                         | train.steps=[1] is not right
train.steps={a:1}                       | train.steps={a:1} is not right
train.steps=99999999999999999999        | is too large; give 9007199254740992 at most
train.steps=1e400                       | train.steps=1e400 is not right
train.steps=null                        | are both null; give one of them
train.steps.x=1                         | train.steps is a whole number and has no setting 'x'
train.tokens=100                        | are both given
train.lr=nan                            | train.lr=nan is not a finite number
train.lr=-inf                           | train.lr=-inf is not a finite number
train.lr=1e400                          | is not a finite number
train.lr=0                              | is not above 0
train.lr=1e-400                         | is not above 0
train.lr=null                           | train.lr=null is not right; give a number
train.lr=true                           | train.lr=true is not right; give a number
train.beta1=1                           | is out of range; give 0 or more, below 1
train.max_norm=0                        | null does not clip
train.warmup=1.1                        | is no share
train.schedule=wsd train.warmup=0.9 train.decay=0.9 | are more than the whole run
train.schedule=                         | give one of cosine, wsd
train.device=tpu                        | give one of auto, cpu, cuda
train.compile=maybe                     | give true or false
train.batch_sequences=0                 | is too small
train.batch_sequences=7                 | use a multiple of 3 (6 or 9)
train.sequence_length=1                 | is too small; give 2 or more
train.log_every=0                       | is too small
eval.tokens=null                        | eval.tokens=null is not right
eval.bootstrap=99999999                 | is too large; give 1000000 at most
eval.relearn_lrs=[]                     | tries no learning rate
eval.relearn_lrs=[nan]                  | eval.relearn_lrs[0]=nan is not a finite number
eval.relearn_lrs=[-1]                   | is not above 0
eval.relearn_lrs=0.1                    | give a list
eval.relearn_lrs=null                   | give a list
seed=1.5                                | seed=1.5 is not right
seed=0x10                               | seed=0x10 is not right
seed=4294967296                         | is too large; give 4294967295 at most
seed=[1]                                | seed=[1] is not right
seed=1 seed=x                           | seed=x is not right
resume=never                            | give one of same, force
baselines=[all]                         | give a list of dense, compute
baselines=[dense]                       | baselines are runs that a sweep adds: add -m
baselines=[[dense]]                     | baselines
plan.mlp_shared=nan                     | is not a finite number
plan.mlp_shared=1                       | leave the blocks without units
plan.attn_shared=0.5                    | leaves 2 of 4 head groups to 3 blocks
plan.layers=[]                          | splits no layer
plan.layers=[0,0]                       | layer 0 is given twice
plan.layers=[99]                        | name each layer once, from 0 to 3
plan.layers=[null]                      | give a list such as [0,1] or null
plan.layers=[[0]]                       | plan.layers
plan.layers=3                           | give a list such as [0,1] or null
plan.layers=[0] plan.layer_share=0.5    | both say which layers are split
plan.layer_share=0                      | splits no layer
plan=forget plan.forget=[]              | does not say what to forget
plan=forget plan.forget=[code,biology,creative] | forgets every domain
plan.forget=[../x]                      | unknown domain '../x'
plan.forget=[[code]]                    | plan.forget[0]=['code'] is not right; give text
plan.full_width=true plan.layers=[0]    | widens all layers, so all must be split
route.foreign_dropout=1.1               | is no share
route.foreign_weight=inf                | is not a finite number
route.foreign_outputs=x                 | give a number or null
method=filtered                         | does not say what is left out
method=filtered method.without=[nope]   | unknown domain 'nope'
method=filtered method.without=[code,biology,creative] | leaves no domain to train on
method.recovery=1                       | leaves no step to train before it
method.fixes={method:dense}             | a method cannot fix itself
method.fixes={nope:1}                   | no such setting; allowed: model
method.fixes={train:{steps:x}}          | method.fixes.train.steps=x is not right
method.fixes={train:3}                  | method.fixes.train=3 is not right; give a mapping
method.fixes={edges:[act]}              | one of none, weight, act
method.fixes={seed:null}                | give a whole number
method.fixes={seed:-1}                  | seed=-1 is too small
method.fixes={plan:{layers:[a]}}        | method.fixes.plan.layers[0]=a is not right
method.fixes={plan:{forget:[1]}}        | method.fixes.plan.forget[0]=1 is not right; give text
method.fixes={data:{weights:{code:x}}}  | method.fixes.data.weights.code=x is not right
method.fixes={data:{weights:{1:2}}}     | the name 1 is no text
method.fixes={partition:{domains:{a:1}}} | method.fixes.partition.domains.a=1 is not right
method.fixes={partition:{domains:3}}    | give a mapping
method.fixes={eval:{relearn_lrs:[true]}} | method.fixes.eval.relearn_lrs[0]=True is not right
method.fixes={train:{lr:99999999999999999999}} | give a number
method.fixes={baselines:[x]}            | method.fixes.baselines[0]=x is not right
method.fixes=[1]                        | give a mapping
procedure.rounds=1000000000000          | are too many
procedure=alternate procedure.rounds=1e9 | is not right; give how many rounds
procedure=alternate procedure.rounds=[] | is not right; give how many rounds
procedure=alternate procedure.rounds=[inf,1] | is not a finite number
procedure=alternate procedure.rounds={a:1} | is not right; give how many rounds
procedure=alternate procedure.rounds=20 | end with more than 10000 experts
procedure=alternate procedure.children=1000 | end with more than 10000 experts
procedure=alternate procedure.children=1000000 | is too large; give 1000 at most
procedure=alternate plan=none           | has nobody to assign units to
procedure.rewarm=0                      | is not above 0
procedure.documents=1                   | is too small; give 2 or more
data=local                              | data=local has no text for code, biology, creative
data=local data.root=                   | data.root is empty
data=local data.root=nowhere            | data.root=nowhere is not a folder
data=local data.root=afile              | data.root=afile is not a folder
data=local data.paths.law=x             | unknown source 'law'
data=hub                                | no data set for source code
data=hub data.sources={code:{},biology:{},creative:{}} | data.sources.code.path is empty
data.sources={code:3}                   | data.sources={code:3} is not right; give a mapping such as
data.weights={code:0,biology:0,creative:0} | leaves no domain with a weight above 0
data.weights.code=1e308                 | weights and shares that are less far apart
data.weights.code=null                  | data.weights.code=null is not right
data.weights.=1                         | cannot read
data.weights=[1]                        | give a mapping
data.tokenizer=                         | data.tokenizer is empty
data.text_field=                        | data.text_field is empty
data.cache=                             | data.cache is empty
data.vocab_size=256                     | is too small; give 257 or more
data.seed=99999999999                   | is too large
data.kind=web                           | give one of synthetic, local, hub
partition.domains=null                  | give a mapping
partition.domains={a:1}                 | give a mapping such as {a:{source:...}}
partition.domains={a:{nope:1}}          | partition.domains.a has no setting 'nope'
partition.domains={../x:{}}             | domain '../x' is no label
partition.domains={/etc/passwd:{}}      | domain '/etc/passwd' is no label
partition.domains={a//b:{}}             | domain 'a//b' is no label
partition.domains={a/:{}}               | domain 'a/' is no label
partition.domains={..:{}}               | domain '..' is no label
partition.domains={a.b:{}}              | domain 'a.b' is no label
partition.domains={core:{}}             | is a reserved word
partition.domains.code=3                | give a group of settings (source
partition.domains.code=null             | give a group of settings (source
partition.domains.code.count=0          | is too small
partition.domains.code.field=x          | field and values go together
partition.domains.code.pattern='*'      | is no regular expression: nothing to repeat
partition.domains.code.pattern='a{99999999999}' | the repetition number is too large
partition.unlabelled=true               | is no share
partition.unlabelled=[0.1]              | is no share
partition.unlabelled={1:0.1}            | the name 1 is no text; put it into quotes
partition.unlabelled={code:null}        | is no share
partition.unlabelled={code:{a:0.1}}     | is no share
partition.unlabelled={law:0.1}          | unknown domain 'law'
tracking.mode=maybe                     | give one of auto, online
tracking.project=                       | tracking.project is empty
tracking.tags=[[a]]                     | tracking.tags[0]=['a'] is not right; give text
tracking.tags=[null]                    | give a list such as [a,b]
edges=[act]                             | edges=[act] is no choice
edges=ACT                               | edges=ACT is no choice
edges={a:1}                             | edges={a:1} is no choice
edges.kind=act                          | has no setting 'kind'
experiment=../edges                     | experiment=../edges is no choice; did you mean edges?
model=/etc/passwd                       | model=/etc/passwd is no choice
model=tiny.yaml                         | did you mean tiny?
model@train=tiny                        | Could not override 'model@train'
train/steps=1                           | no setting 'train/steps'
defaults=[]                             | no setting 'defaults'
edges==act                              | cannot read 'edges==act'
=act                                    | cannot read '=act'
@=1                                     | cannot read '@=1'
edges = act                             | unknown verb 'edges'
train..steps=1                          | cannot read
.train=1                                | cannot read
train.                                  | cannot read 'train.'
{}                                      | cannot read '{}'
x:y                                     | cannot read 'x:y'
train.steps=(1                          | cannot read
train.steps={a:1                        | cannot read
train.steps=1]                          | cannot read
train.steps=${oc.env:NOPE}              | Environment variable 'NOPE' not found
train.steps=${train.steps}              | Recursive interpolation
train.steps=${                          | cannot read
seed=${eval:1+1}                        | Unsupported interpolation type eval
seed=range(0,2)                         | gives several values: add -m
seed=int(x)                             | cannot read
seed=nope(1)                            | cannot read
"""

HYDRA = """
hydra=x                                 | Could not override 'hydra'
hydra.run=1                             | hydra.run is a group of settings
hydra.sweep=x                           | hydra.sweep is a group of settings
hydra.run.dir=null                      | hydra.run.dir
hydra.run.dir=                          | hydra.run.dir= names no folder
hydra.run.dir=[a]                       | hydra.run.dir
hydra.run.dir=afile                     | cannot be a folder: afile is none
hydra.run.dir=afile/x/y                 | cannot be a folder: afile is none
hydra.run.dir=/dev/null/x               | cannot be a folder: /dev/null is none
hydra.job.name=null                     | hydra.job.name
hydra.job.num=3                         | is for Hydra to write
hydra.job.env_copy=[NOPE]               | there is no environment variable 'NOPE'
hydra.mode=NOPE                         | expected one of [RUN, MULTIRUN]
hydra.verbose=[[a]]                     | hydra.verbose is not right
hydra.output_subdir=../../x             | is no name of a folder
hydra.launcher=x                        | choose one with hydra/launcher=
hydra.launcher.nope=1                   | Key 'nope' not in
hydra.launcher._target_=os.system       | choose one with hydra/launcher=
hydra/launcher=slurm hydra.launcher.nope=1 | Key 'nope' not in 'SlurmConfig'
hydra/sweeper=nope                      | hydra/sweeper=nope is no choice
hydra/nope=x                            | no setting 'hydra/nope'
hydra/job_logging=none                  | hydra.job_logging.handlers.console has no class
hydra.job_logging=x                     | hydra.job_logging
hydra.job_logging.version=2             | is unknown to Python; give 1
hydra.job_logging.root.level=NOPE       | is none of CRITICAL, ERROR
hydra.job_logging.root.handlers=[nope]  | there is no handler nope
hydra.hydra_logging.version=7           | is unknown to Python; give 1
hydra.searchpath=x                      | must be a list of strings
hydra.searchpath=[file://]              | does not exist
hydra.overrides.task=[x]                | is for Hydra to write
hydra.runtime.output_dir=/x             | is for Hydra to write
hydra.callbacks.x=1                     | Key 'x' is not in struct
-m seed=0,1 hydra.sweep.subdir=../../x  | is no folder below that of the sweep
-m seed=0,1 "hydra.sweep.subdir='../{job}'" | is no folder below that of the sweep
-m seed=0,1 "hydra.sweep.subdir='/tmp/{job}'" | is no folder below that of the sweep
-m seed=0,1 "hydra.sweep.subdir='{job}/../..'" | is no folder below that of the sweep
-m seed=0 hydra.sweep.subdir=.          | is no folder below that of the sweep
-m seed=0 hydra.sweep.subdir=           | is no folder below that of the sweep
-m seed=0 hydra.sweep.dir=.  hydra.sweep.subdir=afile | cannot be a folder
-m seed=0,1 hydra.sweep.subdir=${nope}  | Interpolation key 'nope' not found
-m seed=0,1 hydra.sweep.dir=            | hydra.sweep.dir= names no folder
-m seed=0,1 hydra.sweep.dir=afile       | cannot be a folder: afile is none
-m seed=0,1 hydra.sweep.dir=afile/x     | cannot be a folder: afile is none
-m seed=0,1 hydra.sweeper=x             | use hydra/sweeper=basic
-m seed=0,1 hydra.sweeper._target_=os.system | use hydra/sweeper=basic
-m seed=0,1 hydra.sweeper.params=x      | hydra.sweeper.params
-m seed=0,1 hydra.sweeper.params={seed:x} | the config cannot be put together
-m seed=0,1 hydra.sweeper.max_batch_size=0 | is too small; give 1 or more
-m seed=0,1 hydra.sweeper.max_batch_size=-1 | is too small; give 1 or more
-m seed=0,1 hydra.launcher._target_=nope | choose one with hydra/launcher=
"""

SWEEPS = """
-m seed=range(0)                        | seed=range(0) gives no value
-m seed=range(2,0)                      | seed=range(2,0) gives no value
-m seed=range(0,10,0)                   | has no end; give finite numbers
-m seed=range(0,1000000000)             | 1000000000 jobs are more than
-m seed=range(0,1000) train.steps=range(1,1000) | 999000 jobs are more than
-m train.lr=range(0,1,0.000000001)      | jobs are more than
-m seed=shuffle(range(2,0))             | gives no value
-m seed=interval(0,1)                   | does not support sweep type
-m edges=glob(zzz*)                     | edges=glob(zzz*) gives no value
-m model=glob(base*)                    | is no choice
-m seed=0,                              | cannot read
-m seed=0,,1                            | cannot read
-m seed=choice()                        | cannot read
-m edges=act,nope                       | edges=nope is no choice
-m train.lr=1,nan                       | train.lr=nan is not a finite number
-m data.weights.code=1,x                | data.weights.code=1,x is not right
-m plan.layers=[0],[9]                  | plan.layers=[9] does not fit
-m partition=nope,code_bio_creative     | partition=nope is no choice
"""

VERBS = """
--cfg                                   | expected one argument
--cfg nope                              | invalid choice: 'nope'
--config-dir                            | expected one argument
--info nope                             | invalid choice: 'nope'
--shell-completion                      | wants one of install=SHELL
status                                  | the following arguments are required: DIR
status nowhere                          | nowhere
watch                                   | the following arguments are required: DIR
watch nowhere                           | nowhere is no folder
watch .                                 | . holds no job
watch . --every 0                       | '0' is no number of seconds
watch . --every nan                     | 'nan' is no number of seconds
reports                                 | unknown verb 'reports'
report                                  | the following arguments are required: DIR
report a b                              | unrecognized arguments: b
report --nope .                         | unrecognized arguments: --nope
report nowhere                          | nowhere is no folder
report afile                            | afile is no folder
report .                                | . holds no job
export                                  | the following arguments are required: RUN, --to
export . --to                           | --to: expected one argument
export . --to x --device tpu            | invalid choice: 'tpu'
export . --kep code --to x              | unrecognized arguments: --kep code
export afile --to x                     | afile is no folder
estimate --gpus x                       | --gpus: 'x' is no whole number of 1 or more
estimate --gpus 99999999999999999999    | is no whole number of 1 or more
estimate --gpus 5                       | do not divide over 5 processes
estimate --mfu nan                      | is no share
estimate --mfu x                        | invalid float value: 'x'
estimate --gflops nan                   | is no finite number above 0
estimate --gflops inf                   | is no finite number above 0
estimate --gpu tpu                      | invalid choice: 'tpu'
estimate --vocab-size -1                | is no whole number of 1 or more
estimate nope                           | unknown verb 'nope'
estimate model=hf model.path=nowhere    | an estimate downloads nothing
bench nope                              | unknown benchmark 'nope'
bench mlp --width 0                     | --width: '0' is no whole number of 1 or more
bench step --rows -1                    | is no whole number of 1 or more
bench step --model nope                 | invalid choice: 'nope'
bench scaling --vocab-size x            | is no whole number of 1 or more
doctor x                                | unrecognized arguments: x
dashboard                               | the following arguments are required: DIR
dashboard nowhere                       | nowhere is no folder
dashboard . --dry-run                   | . holds no job
dashboard . --upload-only               | . holds no job
dashboard . --upload-only --dry-run     | not allowed with argument
-x                                      | unknown flag -x
--config-dir afile                      | config folder afile does not exist
--config-path .                         | Cannot find primary config 'config'
--config-name nope                      | Cannot find primary config 'nope'
--config-name ../x                      | Cannot find primary config '../x'
--cfg job edges=nope                    | edges=nope is no choice
"""


def corpus(table: str) -> list[tuple[list[str], str]]:
    """Words and what the line says, of a table `words | said`."""
    rows = [line.rsplit(" | ", 1) for line in table.strip().splitlines()]
    found = []
    for words, said in rows:
        words = words.strip()
        # Quotes belong to Hydra's grammar, except where a word is put into others.
        argv = shlex.split(words) if '"' in words else words.split()
        found.append((argv, said.strip()))
    return found


CASES = [case for table in (SETTINGS, HYDRA, SWEEPS, VERBS) for case in corpus(table)]

ODD = [
    ([""], "cannot read ''"),
    (["\n"], "cannot read"),
    (["a\nb=1"], "cannot read"),
    (["train.steps='a\nb'"], "train.steps='a b' is not right"),
    (["seed=\x00"], "cannot read"),
    (["data=local", "data.root='\x1b[31mred'"], r"data.root=\x1b[31mred is not a folder"),
    (["model=hf", "model.path='a\nb'"], "neither a folder nor a name"),
    (["model=hf", f"model.path={LONG}"], "neither a folder nor a name"),
    (["model=hf", f"model.path=/{LONG}"], "File name too long"),
    (["edges=\u202eact"], "cannot read"),
    (["äct=1"], "cannot read"),
    (["edges=\ud800"], "cannot read"),
    (["edges=act tiny"], "is no choice"),
    (["'"], "cannot read"),
    (["partition.domains={'a b':{}}"], "cannot read"),
    (["partition.domains.code.pattern='(\n'"], "is no regular expression"),
    ([f"edges={LONG}"], "is no choice"),
    ([LONG], "unknown verb"),
    ([f"{LONG}=1"], "no setting"),
    ([f"train.{LONG}=1"], "train has no setting"),
    (["a." * 5000 + "b=1"], "no setting 'a'"),
    (["seed=" + "[" * 500 + "]" * 500], "brackets within brackets"),
    (["seed=" + "{a:" * 300 + "1" + "}" * 300], "brackets within brackets"),
    (["data.root=" + "${" * 200 + "x" + "}" * 200], "cannot read"),
    ([f"hydra.run.dir={LONG}"], "cannot be a folder (File name too long)"),
    (["-m", "seed=0", f"hydra.sweep.subdir={LONG}"], "cannot be a folder (File name too long)"),
    (["--config-dir", LONG], "does not exist"),
    (["--config-name", LONG], "config"),
    (["report", LONG], "is no folder"),
    (["report", "a\nb\x1b[2J"], r"a b\x1b[2J is no folder"),
    (["export", LONG, "--to", "x"], "is no folder"),
    (["estimate", "--gpus", "\n"], "is no whole number"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for a file, to type commands in; a job that would run fails."""

    def run_job(*_: object, **rest: object) -> None:
        pytest.fail("a job was run")

    (tmp_path / "afile").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(gr_sweep.job, "run_job", run_job)
    return tmp_path


@pytest.mark.parametrize(("argv", "said"), CASES, ids=[" ".join(argv)[:60] for argv, _ in CASES])
def test_a_command_that_nobody_can_mean_is_one_line(here, capsys, argv, said):
    assert_refused(argv, said, here, capsys)


@pytest.mark.parametrize(("argv", "said"), ODD, ids=[ascii(argv[-1])[:40] for argv, _ in ODD])
def test_odd_characters_and_lengths_stay_in_one_line_that_is_not_endless(here, capsys, argv, said):
    assert_refused(argv, said, here, capsys)
    # What is long is cut.
    with pytest.raises(GrSweepError) as refusal:
        raise GrSweepError(LONG + "\x1b\n" + LONG)
    assert is_one_line(str(refusal.value)) and len(str(refusal.value)) < 2100


HEAD = "defaults: [base_partition, _self_]\n"

FILES = {
    "broken yaml": ("partition=x", "partition/x.yaml", "name: [", "config cannot be put together"),
    "tabs": ("partition=x", "partition/x.yaml", f"{HEAD}domains:\n\ta: {{}}\n", "cannot be put"),
    "unclosed quote": ("partition=x", "partition/x.yaml", 'name: "x', "cannot be put together"),
    "unknown key": ("partition=x", "partition/x.yaml", f"{HEAD}colour: red\n", "Key 'colour'"),
    "wrong type": ("partition=x", "partition/x.yaml", f"{HEAD}mislabelled: x\n", "to Float"),
    "no schema": ("partition=x", "partition/x.yaml", "colour: red\n", "Key 'colour'"),
    "a list": ("partition=x", "partition/x.yaml", "- 1\n- 2\n", ""),
    "a word": ("partition=x", "partition/x.yaml", "hello\n", ""),
    "a number": ("partition=x", "partition/x.yaml", "3\n", ""),
    "key twice": ("partition=x", "partition/x.yaml", f"{HEAD}name: a\nname: b\n", "duplicate key"),
    "python tag": (
        "partition=x",
        "partition/x.yaml",
        f"{HEAD}name: !!python/object/apply:os.system ['touch ran']\n",
        "could not determine a constructor",
    ),
    "python name": ("partition=x", "partition/x.yaml", "name: !!python/name:os.system\n", "constr"),
    "anchor of itself": ("partition=x", "partition/x.yaml", "a: &a [*a]\n", ""),
    "unknown anchor": ("partition=x", "partition/x.yaml", "name: *nope\n", "undefined alias"),
    "two documents": ("partition=x", "partition/x.yaml", f"{HEAD}---\nname: x\n", "document"),
    "binary": ("partition=x", "partition/x.yaml", bytes(range(256)) * 9, "cannot be put together"),
    "latin 1": ("partition=x", "partition/x.yaml", b"name: \xe9\n", "cannot be put together"),
    "nul": ("partition=x", "partition/x.yaml", b"name: \0\n", "cannot be put together"),
    "deep": ("partition=x", "partition/x.yaml", "a: " + "[" * 3000 + "]" * 3000, "brackets"),
    "empty key": ("partition=x", "partition/x.yaml", f"{HEAD}domains: {{'': {{}}}}\n", "no label"),
    "number as domain": ("partition=x", "partition/x.yaml", f"{HEAD}domains: {{a: 1}}\n", ""),
    "path as domain": (
        "partition=x",
        "partition/x.yaml",
        f"{HEAD}domains: {{'../x': {{}}, b: {{}}}}\n",
        "domain '../x' is no label",
    ),
    "line break in domain": (
        "partition=x",
        "partition/x.yaml",
        f'{HEAD}domains: {{"a\\nb": {{}}, c: {{}}}}\n',
        r"domain 'a\nb' is no label",
    ),
    "unknown default": ("partition=x", "partition/x.yaml", "defaults: [nope]\n", "nope"),
    "defaults no list": ("partition=x", "partition/x.yaml", "defaults: nope\n", "defaults"),
    "defaults of numbers": ("partition=x", "partition/x.yaml", "defaults: [1, 2]\n", "efaults"),
    "itself as default": ("partition=x", "partition/x.yaml", "defaults: [x]\n", ""),
    "a default outside": ("partition=x", "partition/x.yaml", "defaults: [../../x]\n", ""),
    "interpolation": ("partition=x", "partition/x.yaml", f"{HEAD}name: ${{nope}}\n", "nope"),
    "missing value": (
        "partition=x",
        "partition/x.yaml",
        f"{HEAD}domains: {{a: {{}}}}\nname: ???\n",
        "",
    ),
    "package": ("partition=x", "partition/x.yaml", "# @package train\nnope: 1\n", "nope"),
    "experiment": ("experiment=x", "experiment/x.yaml", "# @package _global_\nnope: 1\n", "nope"),
    "experiment of a wrong choice": (
        "experiment=x",
        "experiment/x.yaml",
        "# @package _global_\ndefaults: [{override /edges: nope}]\n",
        "nope",
    ),
    "experiment with a wrong sweep": (
        "-m experiment=x",
        "experiment/x.yaml",
        "# @package _global_\nhydra: {sweeper: {params: {seed: 'range(0)'}}}\n",
        "seed=range(0) gives no value",
    ),
    "experiment whose sweep cannot be read": (
        "-m experiment=x",
        "experiment/x.yaml",
        "# @package _global_\nhydra: {sweeper: {params: {seed: '(1'}}}\n",
        "cannot read",
    ),
    "folder with a nul": (
        "experiment=x",
        "experiment/x.yaml",
        '# @package _global_\nhydra: {run: {dir: "a\\0b"}}\n',
        "names no folder",
    ),
    "config without schema": ("--config-name mine", "mine.yaml", "seed: 1\n", "schema"),
    "config that is empty": ("--config-name mine", "mine.yaml", "", "schema"),
    "config with a wrong default": (
        "--config-name mine",
        "mine.yaml",
        "defaults: [base_config, {model: nope}]\n",
        "nope",
    ),
    "config that includes itself": ("--config-name mine", "mine.yaml", "defaults: [mine]\n", ""),
}


@pytest.mark.parametrize(("typed", "file", "content", "said"), FILES.values(), ids=FILES)
def test_a_config_file_of_the_user_that_is_wrong_is_one_line(
    here, capsys, typed, file, content, said
):
    path = here / "own" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(["--config-dir", "own", *typed.split()], said, here, capsys)


def test_a_config_that_is_a_folder_or_leads_nowhere_is_one_line(here, capsys):
    (here / "own" / "partition" / "x.yaml").mkdir(parents=True)
    (here / "own" / "partition" / "y.yaml").symlink_to("nowhere")
    for name in ("x", "y"):
        assert_refused(["--config-dir", "own", f"partition={name}"], "", here, capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "seed=0,1", "hydra.sweep.subdir=../../x"],
        ["train.steps='a\nb'"],
        ["report"],
        ["edges=\udcff"],
    ],
    ids=ascii,
)
def test_what_the_process_itself_prints_is_that_line(here, argv):
    before = contents(here)
    done = subprocess.run(
        [sys.executable, "-m", "gr_sweep", *argv],
        env={"PYTHONPATH": str(Path(gr_sweep.__file__).parents[1]), "HOME": str(here)},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, b"") and contents(here) == before
    assert done.stderr.startswith(b"gr-sweep: ") and done.stderr.count(b"\n") == 1


def test_so_many_jobs_as_a_sweep_may_have_are_not_too_many():
    with pytest.raises(GrSweepError, match=f"{MAX_JOBS + 1} jobs"):
        compose([f"seed=range(0,{MAX_JOBS + 1})"], multirun=True)


KEYS = st.sampled_from(
    [
        "seed", "edges", "model", "plan", "train", "train.steps", "train.lr", "plan.layers",
        "plan.forget", "data.weights", "data.weights.code", "partition.domains",
        "partition.domains.code", "partition.unlabelled", "method.fixes", "procedure.rounds",
        "tracking.tags", "eval.relearn_lrs", "hydra.run.dir", "hydra.verbose", "experiment",
        "baselines", "resume", "~seed", "+edges", "++train.x", "nope",
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
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(KEYS, VALUES).map("=".join), min_size=1, max_size=3), st.booleans())
@example(["partition.domains={a:1}"], False)
@example(["procedure=alternate", "procedure.rounds=30"], False)
def test_whatever_is_typed_composes_or_is_refused_in_one_line(here, overrides, is_sweep):
    before = contents(here)
    with within():
        try:
            assert compose(overrides, multirun=is_sweep).jobs
        except GrSweepError as error:
            assert is_one_line(str(error))
    assert contents(here) == before
