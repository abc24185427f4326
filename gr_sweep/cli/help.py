"""The text of `gr-sweep --help`: examples, the groups of conf/, verbs and flags. Without Hydra."""

from collections import defaultdict
from pathlib import Path

from gr_sweep.errors import ConfigError

EXAMPLES = (
    ("gr-sweep", "one job: domains code, biology, creative; synthetic text; model nano"),
    ("gr-sweep edges=weight seed=1", "another choice of edges, another seed"),
    ("gr-sweep -m edges=both,act,weight", "a job for each choice, compared in a report"),
    ("gr-sweep -m edges=both,act seed=0,1,2", "all 6 combinations; run again: what is missing"),
    ("gr-sweep -m edges=both,act baselines=[dense,filtered]", "with the runs to compare with"),
    ("gr-sweep experiment=edges_vs_baselines scale=smoke", "a study of conf/experiment/, small"),
    ("gr-sweep data=local data.root=DIR", "your own text: a file or folder per domain in DIR"),
    ("gr-sweep plan=forget plan.forget=[biology] edges=weight", "a core without biology"),
    ("gr-sweep -m method=routed,sgtm,demix plan.forget=[biology]", "and published methods"),
    ("gr-sweep procedure=alternate", "rounds: the trained model decides which units are whose"),
    ("gr-sweep model=hf model.path=DIR", "start from a pretrained checkpoint"),
    ("gr-sweep debug=default", "a complete run in seconds, to check the installation"),
)

VERBS = (
    ("status DIR [--watch]", "state and progress of the jobs of a sweep, once or live"),
    ("report DIR", "table, results.csv and index.html of a sweep's folder"),
    ("dashboard DIR", "upload a sweep to W&B, with a workspace and a report"),
    ("export JOB --keep DOMAIN --to DIR", "a Hugging Face checkpoint without the other domains"),
    ("estimate [-m] ...", "memory, operations and hours of each job, without running it"),
    ("bench mlp|step", "the speed of this machine"),
    ("doctor", "versions, devices, W&B, SLURM, cache and disk"),
)

FLAGS = (
    ("-m, --multirun", "a job for each combination of values: a=1,2 a=range(0,3) a=choice(x,y)"),
    ("--cfg job", "print the settings of each job, run none; --cfg hydra: those of Hydra"),
    ("-q, --quiet", "no progress of jobs, only warnings and results"),
    ("--config-dir DIR", "also search DIR for configs"),
    ("-sc install=bash", 'completion of words: eval "$(gr-sweep -sc install=bash)"; or zsh, fish'),
    ("--version", "print the version"),
)


_TITLE = "gr-sweep: which partition, routed over which edges, separates best at the least cost?"
_END = """\
Settings (KEY=VALUE), such as train.steps=1000 plan.mlp_shared=0.25 data.weights.code=2:
gr-sweep --cfg job prints them with their values, gr_sweep/config.py describes them.

A single job is written to outputs/runs/JOB, a sweep to outputs/SWEEP/JOB, its report to
outputs/SWEEP/report."""


def conf_dir() -> Path:
    """The folder of the YAML files: in the installed package, or at the top of a checkout.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no configs in {package} or beside it; install gr-sweep again")


def help_text() -> str:
    """The text, with the groups of conf/ and their choices."""
    choices = defaultdict(list)
    for file in sorted(conf_dir().glob("*/*.yaml")):
        choices[file.parent.name].append(file.stem)
    groups = [(group, "  ".join(names)) for group, names in choices.items()]
    lines = [_TITLE]
    for title, rows in (
        ("Examples", EXAMPLES),
        ("Groups (GROUP=CHOICE)", groups),
        ("Verbs (gr-sweep VERB --help)", VERBS),
        ("Flags", FLAGS),
    ):
        width = max(len(left) for left, _ in rows)
        lines += ["", title, *(f"  {left:<{width}}  {right}" for left, right in rows)]
    return "\n".join([*lines, "", _END])
