"""The verb `dashboard`: from a finished sweep to a workspace and a report on W&B.

Knows in which order things happen and what is printed. What is on a dashboard is
`gr_sweep.tracking.dashboard`'s business; how jobs are compared is the report's.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.arguments import Parser
from gr_sweep.cli.sync import Outcome, sync
from gr_sweep.config import ProcedureKind, is_number, round_lengths
from gr_sweep.domains import labels_of_round
from gr_sweep.errors import ConfigError, JobError
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP, MATRIX_TABLE, STEP
from gr_sweep.tracking.dashboard import (
    ADDED,
    COMPARED_AS,
    LABEL,
    Dashboard,
    Logged,
    Measure,
    make_dashboard,
)

if TYPE_CHECKING:
    from gr_sweep.report.collect import Job, Sweep
    from gr_sweep.tracking.wandb_api import Server, ServerRun

_EPILOG = """examples:
  gr-sweep dashboard outputs/my-sweep
  gr-sweep dashboard outputs/my-sweep --dry-run
  gr-sweep dashboard --entity TEAM --project gr-sweep --group my-sweep

exit status: 0, or 1 where a job was not uploaded, or 2 where nothing can be made
"""

JOINED = ("utility/", "separability/", "robustness/", "mean_", "round/")
"""How the metrics begin that are known after a sweep: of these a run's summary keeps no other."""

_NOT_OF_THE_JOB = ("command", "fingerprints", "environment", ADDED)
"""Entries of a run's config on W&B beside the job's settings."""

_SHORTER = "shorter dense"

SETTLE_S = 30.0
"""How long a server may take to have taken in what it was sent."""


def main(argv: Sequence[str]) -> int:
    """Prints what it did and both addresses; with --dry-run the dashboard as JSON.

    Raises:
        JobError: the folder does not exist or holds no job.
        ConfigError: no W&B key is configured, or the library for dashboards is missing.
        JobError: no run to show, runs in several projects, or a server that is away.
    """
    parser = Parser(
        prog="gr-sweep dashboard",
        description="Make a saved workspace and a report of a sweep on W&B, or bring them up to "
        "date. With DIR it uploads what jobs logged offline, and adds to the runs' summaries what "
        "is known after the sweep alone; without, it takes what the runs on the server have.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dir", metavar="DIR", type=Path, nargs="?", help="folder of a sweep, or of one job"
    )
    parser.add_argument("--entity", help="user or team; with DIR in place of the jobs' own")
    parser.add_argument("--project", help="project; with DIR in place of the jobs' own")
    parser.add_argument("--group", help="without DIR: the sweep whose runs are shown")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the dashboard as JSON and change nothing"
    )
    arguments = parser.parse_args(list(argv))
    if arguments.dir is None and arguments.project is None:
        parser.error("give DIR, or --project")
    if arguments.dir is not None and arguments.group is not None:
        parser.error("--group goes without DIR, whose jobs name theirs")
    if arguments.dir is None:
        return _of_server(arguments)
    return _of_folder(arguments)


def _of_folder(arguments: argparse.Namespace) -> int:
    from gr_sweep.report import read_sweep

    sweep = read_sweep(arguments.dir)
    ids = _run_ids(sweep)
    entity, project = _place(sweep, ids, arguments)
    groups = _groups([job for job in sweep.jobs if job.name in ids])
    if arguments.dry_run:
        _print(_dashboard(_only(sweep, ids), entity, project, groups))
        return 0
    _check_library()

    from gr_sweep.tracking.wandb_api import Server

    server = Server()
    found = sync(
        arguments.dir,
        entity=arguments.entity,
        project=arguments.project,
        say=print,
        server=server,
    )
    owner = entity or server.default_entity
    runs = _settled_runs(sweep, ids, server, owner, project)
    there = {name: runs[run_id] for name, run_id in ids.items() if run_id in runs}
    for name in sorted(ids.keys() - there.keys()):
        print(f"{name}: no run of {owner}/{project}, left out")
    for unfinished in sweep.unfinished:
        print(f"{unfinished.name}: {unfinished.why}, left out")
    if not there:
        raise JobError(f"{server.url} has no run of {arguments.dir} in {owner}/{project}")
    shown = _only(sweep, there)
    added = _add_joined(shown, there, server)
    dashboard = _dashboard(
        shown,
        entity,
        project,
        groups,
        history=frozenset().union(*(run.history_keys for run in there.values())) & _history(shown),
        media=frozenset(key for run in there.values() for key in run.summary),
        summary=_summary(_only(shown, added))
        | frozenset(
            key for job in shown.jobs if job.name not in added for key in there[job.name].metrics
        ),
        added=[
            _added(shown, job) if job.name in added else there[job.name].config.get(ADDED) or {}
            for job in shown.jobs
        ],
    )
    _save(dashboard, server, owner)
    return 1 if found[Outcome.failed] else 0


def _of_server(arguments: argparse.Namespace) -> int:
    _check_library()

    from gr_sweep.tracking.wandb_api import Server

    server = Server()
    entity = arguments.entity or server.default_entity
    runs = server.runs(entity, arguments.project, group=arguments.group)
    ours = [run for run in runs.values() if _is_ours(run) and not run.is_running]
    place = f"{entity}/{arguments.project}" + (f", group {arguments.group}" * bool(arguments.group))
    if not ours:
        raise JobError(f"{server.url} has no finished run of gr-sweep in {place}")
    sweep = _sweep_of(ours)
    groups = [] if arguments.group is None else [arguments.group]
    dashboard = _dashboard(
        sweep,
        arguments.entity,
        arguments.project,
        groups,
        history=frozenset().union(*(run.history_keys for run in ours)),
        media=frozenset(key for run in ours for key in run.summary),
        added=[run.config.get(ADDED) or {} for run in ours],
    )
    if arguments.dry_run:
        _print(dashboard)
        return 0
    _save(dashboard, server, entity)
    return 0


def _save(dashboard: Dashboard, server: "Server", entity: str) -> None:
    from gr_sweep.tracking.wandb_views import save

    for what, url, is_new in save(dashboard, server, entity):
        print(f"{what} {'made' if is_new else 'updated'}: {url}")


def _check_library() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "dashboards are made with wandb-workspaces; pip install gr-sweep[dashboards]"
        )


def _print(dashboard: Dashboard) -> None:
    print(json.dumps(dashboard.as_plain(), indent=1))


# Of a folder


def _run_ids(sweep: "Sweep") -> dict[str, str]:
    """The W&B run of each finished job that has one, by the job's name."""
    found = {}
    for job in sweep.jobs:
        # A folder of one job is its own.
        inside = sweep.folder / job.name
        path = (inside if inside.is_dir() else sweep.folder) / "wandb" / "run_id"
        if path.is_file() and (run_id := path.read_text(encoding="utf-8").strip()):
            found[job.name] = run_id
    if not found:
        raise JobError(
            f"no finished job of {sweep.folder} has logged to W&B; with tracking=auto or "
            "tracking=offline they do"
        )
    return found


def _place(
    sweep: "Sweep", ids: Mapping[str, str], arguments: argparse.Namespace
) -> tuple[str | None, str]:
    """Entity and project of the jobs; an entity of None is the account's default."""
    places = {
        (
            arguments.entity or job.settings.get("tracking.entity"),
            arguments.project or str(job.settings.get("tracking.project")),
        )
        for job in sweep.jobs
        if job.name in ids
    }
    if len(places) > 1:
        said = ", ".join(sorted(f"{entity or '(default)'}/{name}" for entity, name in places))
        raise JobError(
            f"the jobs of {arguments.dir} have logged to several projects ({said}), and a "
            "dashboard is of one: keep their folders apart"
        )
    [place] = places
    return place


def _groups(jobs: Iterable["Job"]) -> list[str]:
    """Their W&B groups, that of the oldest job first; a folder that was renamed has several."""
    groups = (
        str(job.settings.get("tracking.group") or job.sweep)
        for job in sorted(jobs, key=lambda job: (job.started, job.name))
    )
    return list(dict.fromkeys(groups))


def _only(sweep: "Sweep", names: Iterable[str]) -> "Sweep":
    from gr_sweep.report.collect import Sweep

    jobs = [job for job in sweep.jobs if job.name in set(names)]
    return Sweep(name=sweep.name, folder=sweep.folder, jobs=jobs, unfinished=[])


def _settled_runs(
    sweep: "Sweep", ids: Mapping[str, str], server: "Server", entity: str, project: str
) -> "dict[str, ServerRun]":
    """The runs as the server has them, once it has taken in what it was sent a moment ago."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        runs = server.runs(entity, project, ids=sorted(ids.values()))
        waiting = [
            job
            for job in sweep.jobs
            if (run := runs.get(ids.get(job.name, ""))) is not None and not _is_settled(job, run)
        ]
        if not waiting or time.monotonic() > deadline:
            return runs
        time.sleep(SETTLE_S / 10)


def _is_settled(job: "Job", run: "ServerRun") -> bool:
    """Whether the server has the job's own summary. What is written to it replaces it whole."""
    return not run.is_running and (
        registry.MEAN_LOSS in run.summary or registry.MEAN_LOSS not in job.metrics
    )


def _add_joined(sweep: "Sweep", runs: "Mapping[str, ServerRun]", server: "Server") -> set[str]:
    """Adds to the runs what the report knows of them, and says what; the names of the jobs whose
    runs have it now."""
    added = set()
    for job in sweep.jobs:
        run = runs[job.name]
        if not _is_settled(job, run):
            print(f"{job.name}: W&B has not all of it yet, its summary is left; try again later")
            continue
        changed = server.add(run, _metrics(job), {ADDED: _added(sweep, job)}, JOINED)
        if changed:
            print(f"{job.name}: {len(changed)} of its values on W&B set anew")
        added.add(job.name)
    return added


def _history(sweep: "Sweep") -> frozenset[str]:
    return frozenset(key for job in sweep.jobs for row in job.history for key in row) - {STEP}


def _summary(sweep: "Sweep") -> frozenset[str]:
    return frozenset(key for job in sweep.jobs for key in _metrics(job))


def _metrics(job: "Job") -> dict[str, float]:
    """All numbers of a job and of its rounds, with those that are joined with baselines."""
    found = dict(job.metrics)
    for one in job.rounds:
        of_round = {
            key: one.metrics[key]
            for key in map(registry.SELECTIVITY, one.labels)
            if key in one.metrics
        }
        of_round |= {registry.PARAMETERS_KEPT(at): n for at, n in one.parameters_kept.items()}
        of_round |= {registry.LOSS_EXPERT(domain): loss for domain, loss in one.leaf_loss.items()}
        of_round |= {registry.LEAF_TAX(domain): tax for domain, tax in one.leaf_tax.items()}
        for key, values in (
            (registry.MEAN_SELECTIVITY, one.selectivities),
            (registry.MEAN_LEAF_TAX, [one.leaf_tax.get(domain) for domain in job.domains]),
        ):
            known = [value for value in values if value is not None]
            if known and len(known) == len(values):
                of_round[key] = sum(known) / len(known)
        if one.mean_parameters is not None:
            of_round[registry.MEAN_PARAMETERS_KEPT] = one.mean_parameters
        if one.modularity is not None:
            of_round[registry.MODULARITY.key] = one.modularity
        found |= {registry.in_round(one.number, key): value for key, value in of_round.items()}
    return {key: value for key, value in found.items() if is_number(value)}


def _added(sweep: "Sweep", job: "Job") -> dict[str, str]:
    """What a run's config gets beside the job's own."""
    compared_as = _SHORTER if job.is_shorter_dense else sweep.apart(job)[0][1]
    return {COMPARED_AS: compared_as, LABEL: sweep.label(job, seed=False)}


# Of a server


def _is_ours(run: "ServerRun") -> bool:
    config = run.config
    return all(isinstance(config.get(name), dict) for name in ("partition", "plan", "method"))


def _sweep_of(runs: "Sequence[ServerRun]") -> "Sweep":
    """Runs of a server as the report knows jobs; what a folder alone knows is empty."""
    from gr_sweep.report.collect import Job, Sweep

    jobs = [
        Job(
            name=run.id,
            sweep=run.group or "",
            command=str(run.config.get("command", "")),
            overrides=[],
            # A server does not keep their order.
            domains=sorted(run.config["partition"].get("domains") or {}),
            config={k: v for k, v in run.config.items() if k not in _NOT_OF_THE_JOB},
            metrics=run.metrics,
            intervals={},
            environment={},
            fingerprints={},
            started="",
            finished="",
            is_shorter_dense=(run.config.get(ADDED) or {}).get(COMPARED_AS) == _SHORTER,
        )
        for run in runs
    ]
    return Sweep(name="", folder=Path(), jobs=jobs, unfinished=[])


# Of both


def _dashboard(
    sweep: "Sweep",
    entity: str | None,
    project: str,
    groups: Sequence[str],
    *,
    history: frozenset[str] | None = None,
    summary: frozenset[str] | None = None,
    media: frozenset[str] | None = None,
    added: Sequence[Mapping[str, Any]] | None = None,
) -> Dashboard:
    """The dashboard of jobs.

    Args:
        history, summary, media, added: of a server's runs; None: what the jobs have, with what the
            verb adds to them.
    """
    from gr_sweep.report import measures

    if history is None:
        history = _history(sweep)
    if summary is None:
        summary = _summary(sweep)
    if media is None:
        has_matrix = any(
            registry.MATRIX(part, domain) in job.metrics
            for job in sweep.jobs
            for part in job.domains
            for domain in job.domains
        )
        media = frozenset((HEAT_MAP, MATRIX_TABLE)) if has_matrix else frozenset()
    if added is None:
        added = [_added(sweep, job) for job in sweep.jobs]
    settings = {name for job in sweep.jobs for name in job.settings}
    settings |= {f"{ADDED}.{name}" for one in added for name in one}
    logged = Logged(
        history=history,
        summary=summary,
        settings=frozenset(settings),
        # In one order, whatever that of a server is.
        varied=tuple(
            sorted(name for name in sweep.varied if name != "seed" and _is_axis(sweep, name))
        ),
        domains=tuple(sweep.domains),
        rounds=_labels_of_rounds(sweep, summary),
        media=media & {HEAT_MAP, MATRIX_TABLE},
        num_compared=len({one.get(COMPARED_AS) for one in added}),
        num_labels=len({one.get(LABEL) for one in added}),
    )
    best = measures.best_axes(sweep.compared)
    pairs = [best, *(pair for pair in measures.AXES if pair != best)]
    return make_dashboard(
        logged,
        entity=entity,
        project=project,
        groups=groups,
        axes=[
            (Measure(utility.key, utility.axis), Measure(other.key, other.axis))
            for utility, other in pairs
            if utility.key is not None and other.key is not None
        ],
        measures=_with_key(measures.MAIN),
        robust=_with_key(measures.ROBUST),
    )


def _with_key(found: Iterable[Any]) -> list[Measure]:
    return [Measure(one.key, one.axis) for one in found if one.key is not None]


def _is_axis(sweep: "Sweep", name: str) -> bool:
    """Whether a setting can be an axis: one value, of numbers or words."""
    values = [job.settings.get(name) for job in sweep.compared]
    return not any(isinstance(value, list | dict) for value in values)


def _labels_of_rounds(sweep: "Sweep", summary: frozenset[str]) -> dict[int, tuple[str, ...]]:
    """The labels of each round of the jobs in rounds, by its number."""
    found: dict[int, dict[str, None]] = {}
    for job in sweep.jobs:
        if job.settings.get("procedure.name") != ProcedureKind.alternate.value:
            continue
        rounds = {one.number: one.labels for one in job.rounds}
        if not rounds:
            # Of a server: those that were put into its summaries.
            children = job.settings.get("procedure.children")
            total = len(round_lengths(job.settings.get("procedure.rounds")))
            rounds = {
                number: labels_of_round(job.domains, number, int(children or 1))
                for number in range(1, total + 1)
                if any(key.startswith(registry.in_round(number, "")) for key in summary)
            }
        for number, labels in rounds.items():
            found.setdefault(number, {}).update(dict.fromkeys(labels))
    return {number: tuple(labels) for number, labels in found.items()}
