"""The verb `dashboard`: from the folder of a sweep to a workspace and a report on W&B."""

import contextlib
import dataclasses
import importlib.util
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.arguments import Parser
from gr_sweep.errors import ConfigError, JobError
from gr_sweep.files import write_whole
from gr_sweep.jobdir import State, job_folders, standing
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP, STEP, read_run_id

if TYPE_CHECKING:
    from gr_sweep.report.sweep import Job, Sweep
    from gr_sweep.tracking.wandb_dashboard import Logged

SAVED = "wandb_dashboard.json"
"""In a sweep's folder: the addresses of its workspace and report, by project."""

SETTLE_S = 30.0
"""How long a server may take to process what it was sent."""

_EPILOG = """examples:
  gr-sweep dashboard outputs/my-sweep
  gr-sweep dashboard outputs/my-sweep --dry-run
  gr-sweep dashboard outputs/my-sweep --upload-only

exit status: 0, or 1 if a job was not uploaded, or 2 if nothing can be made
"""


def main(argv: Sequence[str]) -> int:
    """Prints what it did and the addresses; with --dry-run the panels as JSON."""
    parser = Parser(
        prog="gr-sweep dashboard",
        description="Upload what the jobs of a sweep logged offline, add the metrics that need "
        "baselines to their W&B runs, and make or update a W&B workspace and report.",
        epilog=_EPILOG,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the panels as JSON only")
    what.add_argument("--upload-only", action="store_true", help="upload offline logs only")
    arguments = parser.parse_args(list(argv))
    if arguments.upload_only:
        return 0 if _upload(arguments.dir) else 1

    from gr_sweep.report import read_sweep

    sweep = read_sweep(arguments.dir)
    ids = {of.name: run_id for of in job_folders(arguments.dir) if (run_id := read_run_id(of))}
    tracked = _only(sweep, ids)
    if not tracked.jobs:
        said = f"no finished job of {sweep.folder} logged to W&B; run it with tracking=auto"
        raise JobError(said)
    entity, project = _place(tracked)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb-workspaces is missing; pip install gr-sweep[dashboards]")
    if not arguments.dry_run:
        return _make(sweep, tracked, ids, entity, project)

    from gr_sweep.tracking.wandb_dashboard import make_sections

    panels = {
        name: [{"panel": type(panel).__name__} | dataclasses.asdict(panel) for panel in of]
        for name, of in make_sections(_logged(tracked)).items()
    }
    print(json.dumps(panels, indent=1))
    return 0


def _upload(folder: Path) -> bool:
    """Uploads what jobs that are not running logged offline; whether nothing went wrong."""
    from gr_sweep.tracking.wandb import offline_logs
    from gr_sweep.tracking.wandb_server import connect, upload

    logs = [(job, log) for job in job_folders(folder) for log in offline_logs(job)]
    is_uploaded = True
    if logs:
        connect()  # fails at once, in one line
    for job, log in logs:
        if standing(job).state is State.running:
            print(f"{job.name}: running, left")
        else:
            error = upload(log)
            is_uploaded = is_uploaded and not error
            print(f"{job.name}: {f'not uploaded: {error}' if error else 'uploaded'}", flush=True)
    if not logs:
        print("nothing to upload")
    return is_uploaded


def _make(
    sweep: "Sweep", tracked: "Sweep", ids: dict[str, str], entity: str | None, project: str
) -> int:
    """Uploads, adds joined metrics to the runs, makes or updates workspace and report, whose
    addresses are kept in a file; returns the exit status."""
    from gr_sweep.report.sweep import ROUTED
    from gr_sweep.tracking import wandb_dashboard, wandb_server

    api = wandb_server.connect()
    is_uploaded = _upload(sweep.folder)
    with wandb_server.request_errors():
        entity = entity or str(api.default_entity)
    place = f"{entity}/{project}"
    wanted = {job.name: ids[job.name] for job in tracked.jobs}
    deadline = time.monotonic() + SETTLE_S
    while True:
        by_id = wandb_server.runs(api, place, list(wanted.values()))
        runs = {name: by_id[run_id] for name, run_id in wanted.items() if run_id in by_id}
        settled = {job.name for job in sweep.jobs if _is_settled(runs.get(job.name), job)}
        if settled >= runs.keys() or time.monotonic() > deadline:
            break
        time.sleep(SETTLE_S / 10)
    if not runs:
        raise JobError(f"W&B has no run of {sweep.folder} in {place}")
    for job in sweep.jobs:
        if job.name not in runs:
            print(f"{job.name}: no run in {place}, left out")
        elif job.name not in settled:
            print(f"{job.name}: W&B has not processed it yet, nothing added; try again later")
        else:
            kind = job.edges if job.group == ROUTED else job.kind
            names = {
                wandb_dashboard.COMPARED_AS: "shorter dense" if job.is_shorter_dense else kind,
                wandb_dashboard.LABEL: sweep.settings.get(job.name, job.title),
            }
            added = {wandb_dashboard.ADDED: names}
            if count := wandb_server.add(runs[job.name], job.metrics, added):
                print(f"{job.name}: {count} values added on W&B")

    shown = _only(sweep, runs)
    saved: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # none, or damaged: as the first time
        saved = dict(json.loads((sweep.folder / SAVED).read_text(encoding="utf-8")))
    earlier = saved.get(place, {})
    oldest_first = sorted(shown.jobs, key=lambda job: (job.started, job.name))
    groups = [str(job.settings.get("tracking.group") or job.sweep) for job in oldest_first]
    with wandb_server.request_errors():
        where = {"entity": entity, "project": project}
        urls = wandb_dashboard.save(_logged(shown), list(dict.fromkeys(groups)), where, earlier)
    for kind, url in urls.items():
        print(f"{kind} {'updated' if earlier.get(kind) == url else 'made'}: {url}")
    write_whole(sweep.folder / SAVED, json.dumps(saved | {place: urls}, indent=1) + "\n")
    return 0 if is_uploaded else 1


def _only(sweep: "Sweep", names: Collection[str]) -> "Sweep":
    jobs = [job for job in sweep.jobs if job.name in names]
    return dataclasses.replace(sweep, jobs=jobs, unfinished=[])


def _place(sweep: "Sweep") -> tuple[str | None, str]:
    """Entity (None: the account's default) and project of the jobs."""
    names = ("tracking.entity", "tracking.project")
    places = {tuple(job.settings.get(name) for name in names) for job in sweep.jobs}
    if len(places) > 1:
        said = ", ".join(sorted(f"{entity}/{name}" for entity, name in places))
        raise JobError(f"the jobs of {sweep.folder} logged to several projects: {said}")
    [(entity, project)] = places
    return entity, str(project)


def _is_settled(run: Any, job: "Job") -> bool:
    """Whether W&B has processed the whole run: the job's own summary would overwrite what is
    added before that."""
    if run is None or run.state in ("running", "pending"):
        return False
    key = registry.LOSS_FULL.mean
    return key in run.summary_metrics or key not in job.metrics


def _logged(sweep: "Sweep") -> "Logged":
    from gr_sweep.tracking.wandb_dashboard import Logged

    summary = {key for job in sweep.jobs for key in job.metrics}
    if any(key.startswith("separability/matrix/") for key in summary):
        summary.add(HEAT_MAP)
    varied = [
        name
        for name in sorted(sweep.varied)
        # A list or a mapping cannot be an axis of a plot.
        if name != "seed"
        and not any(isinstance(job.settings.get(name), list | dict) for job in sweep.compared)
    ]
    history = {key for job in sweep.jobs for row in job.history for key in row} - {STEP}
    return Logged(
        history=frozenset(history),
        summary=frozenset(summary),
        varied=tuple(varied),
        domains=tuple(sweep.domains),
    )
