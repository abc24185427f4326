"""What `gr-sweep --help` prints: examples first, then the groups as they are found in conf/."""

from pathlib import Path

EXAMPLES = (
    ("gr-sweep", "one job: domains code, biology, creative; synthetic text; model nano"),
    ("gr-sweep edges=weight seed=1", "another choice of edges, another seed"),
    ("gr-sweep -m edges=both,act,weight", "a job for each choice, side by side in a report"),
    ("gr-sweep -m edges=both,act seed=0,1,2", "every combination: 6 jobs; again: what is missing"),
    ("gr-sweep -m edges=both,act baselines=[dense,filtered]", "with the runs to compare with"),
    ("gr-sweep experiment=edges_vs_baselines scale=smoke", "a study of conf/experiment/, in small"),
    ("gr-sweep data=local data.root=DIR", "your own text: a file or folder a domain in DIR"),
    ("gr-sweep plan=forget plan.forget=[biology] edges=weight", "a core without biology"),
    ("gr-sweep -m method=routed,sgtm,demix plan.forget=[biology]", "beside published methods"),
    ("gr-sweep procedure=alternate", "rounds: the trained model says which unit is whose"),
    ("gr-sweep model=hf model.path=DIR", "start from a pretrained checkpoint"),
    ("gr-sweep debug=default", "from start to end in seconds, to see that all works"),
)

VERBS = (
    ("status DIR", "how the jobs of a sweep stand, how far they are, why one failed"),
    ("status DIR --watch", "the same, live, until they have ended"),
    ("report DIR", "table, results.csv and index.html of a sweep's folder"),
    ("dashboard DIR", "the same, and a workspace and a report of the sweep on W&B"),
    ("export JOB --keep DOMAIN --to DIR", "a Hugging Face checkpoint without the other domains"),
    ("estimate [-m] ...", "what each job would need: memory, operations, hours; runs none"),
    ("bench mlp|step|scaling", "how fast a routed step is, compared with a dense one"),
    ("doctor", "versions, devices, W&B, SLURM, cache and disk on one screen"),
)

FLAGS = (
    (
        "-m, --multirun",
        "run a job for every combination of values: a=1,2  a=range(0,3)  a=choice(x,y)",
    ),
    ("--cfg job", "show the settings of a job instead of running it"),
    ("--config-dir DIR", "search DIR for configs of yours besides"),
    ("--info searchpath", "say where configs are looked for"),
    ("--hydra-help", "all that Hydra can be told (hydra/launcher=..., hydra.sweep.dir=...)"),
    ("--version", "print the version"),
)


def help_text(conf: Path) -> str:
    """The text, with the groups and choices of the given configs."""
    groups = [
        (folder.name, "  ".join(file.stem for file in sorted(folder.glob("*.yaml"))))
        for folder in sorted(conf.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    ]
    return "\n".join(
        (
            "gr-sweep: which partition of the data, routed over which edges, separates best at the "
            "least cost?",
            "",
            "Examples",
            *_columns(EXAMPLES),
            "",
            "Groups (GROUP=CHOICE)",
            *_columns(groups),
            "",
            "Settings (KEY=VALUE)",
            "  train.steps=1000 plan.mlp_shared=0.25 data.weights.code=2: gr-sweep --cfg job lists",
            "  them with their values, gr_sweep/config.py says what each one means",
            "",
            "Verbs (gr-sweep VERB --help)",
            *_columns(VERBS),
            "",
            "Flags",
            *_columns(FLAGS),
            "",
            "A job alone goes to outputs/runs/JOB, a sweep to outputs/SWEEP/JOB, its report to "
            "outputs/SWEEP/report.",
        )
    )


def _columns(rows: "tuple[tuple[str, str], ...] | list[tuple[str, str]]") -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}" for left, right in rows]
