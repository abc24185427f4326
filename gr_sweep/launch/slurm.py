"""Jobs of a sweep as SLURM jobs, through submitit.

Whether a job is done is read from its files: SLURM's accounting may be missing, and a job may run
on while this process is gone. The queue only says which jobs may still write them.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError, JobError
from gr_sweep.jobdir import Holder, State, change_record, standing
from gr_sweep.launch.resources import Resources, SlurmConfig, check_given, resources_of
from gr_sweep.launch.work import Work, clear_warnings, say, say_end

POLL_S = 5.0
"""Seconds between two looks at the queue."""

FILES_S = 30.0
"""How much later the last files of a node may be visible here."""

KILL_S = 600.0
"""The longest that a job which was told to stop waits for SLURM to end it."""

_COMMAND_S = 60.0
"""Time limit of SLURM's commands: the controller of a large cluster can be slow."""

MAX_ARRAY = 1000
"""Jobs of one array: SLURM's limit of an index is 1001 by default."""

_OPTIONS = (
    *("nodes", "ntasks_per_node", "cpus_per_task", "mem", "time", "gpus_per_node", "gres"),
    *("partition", "account", "qos", "constraint"),
)
"""Parameters that decide which nodes a job can have."""

_MAX_REQUEUES = 1000
"""How often a job may be requeued after its time limit."""


def check_slurm(config: SlurmConfig, jobs: Sequence[RunConfig]) -> list[Resources]:
    """What the jobs request, if they can be submitted from here with these settings.

    Raises:
        ConfigError: SLURM or submitit is missing, a setting is invalid, or the partition cannot run
            a job.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "hydra/launcher=slurm needs submitit: pip install 'gr-sweep[slurm]'"
        ) from error
    missing = [tool for tool in ("sbatch", "srun", "squeue") if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"hydra/launcher=slurm: {', '.join(missing)} not found on this machine; run the "
            "command on a login node, or use hydra/launcher=local_parallel"
        )
    check_given(config)
    wanted = [resources_of(job, config) for job in jobs]
    for needs in set(wanted):
        _check_request(needs, config)
    return wanted


def _check_request(needs: Resources, config: SlurmConfig) -> None:
    """Raises ConfigError where SLURM has no node for it: such a job would wait for ever."""
    parameters = _sbatch_parameters(config, needs)
    more = parameters.pop("additional_parameters")
    options = {name: parameters[name] for name in _OPTIONS if name in parameters} | more
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
    ]
    with _clean_environment(parameters | more):
        answer = _run(["sbatch", "--test-only", *words, "--wrap=true"])
    if answer is None or answer.returncode:
        said = "no answer" if answer is None else " ".join(answer.stderr.split())
        raise ConfigError(
            f"SLURM cannot run a job with {' '.join(words)}: {said}; set another "
            "hydra.launcher.partition, or hydra.launcher.gpu=null (no GPU), .cpus_per_task, "
            ".mem_gb, .timeout_min, .nodes"
        )


def run_on_slurm(
    works: Sequence[Work],
    config: SlurmConfig,
    resources: Sequence[Resources],
    sweep: Path,
) -> None:
    """Submits the jobs that are not in the queue yet, and waits until all have ended.

    Ctrl-C leaves the jobs in the queue; the same command then waits for them again.

    Args:
        resources: of each job, from `check_slurm`; jobs with the same form an array.

    Raises:
        JobError: sbatch refuses a job, or the controller does not answer.
    """
    queue = queue_of_user()
    if queue is None:
        raise JobError("squeue does not answer; rerun the command when SLURM's controller is back")
    numbers: dict[Path, str] = {}
    groups: dict[Resources, list[Work]] = {}
    for work, needs in zip(works, resources, strict=True):
        record = standing(work.folder)
        if record.slurm_job in queue:
            numbers[work.folder] = record.slurm_job
            say(work, f"already in the queue as SLURM job {record.slurm_job}")
        elif record.state is not State.running:  # which may have been started without SLURM
            groups.setdefault(needs, []).append(work)
    try:
        for needs, group in groups.items():
            for start in range(0, len(group), MAX_ARRAY):
                part = group[start : start + MAX_ARRAY]
                for work in part:
                    clear_warnings(work.folder)
                numbers |= _sbatch(part, config, needs)
                for work in part:
                    change_record(work.folder, slurm_job=numbers[work.folder])
                    say(work, f"submitted as SLURM job {numbers[work.folder]}")
        wait_for(works, numbers, config)
    except (KeyboardInterrupt, JobError):
        _print_what_stays(works, numbers, sweep)
        raise


def _sbatch(works: Sequence[Work], config: SlurmConfig, needs: Resources) -> dict[Path, str]:
    """Submits jobs with the same resources; returns their numbers."""
    import submitit

    parameters = _sbatch_parameters(config, needs)
    try:
        # submitit prints what sbatch says, which the error contains too.
        with _clean_environment(parameters), contextlib.redirect_stderr(io.StringIO()):
            executor = submitit.SlurmExecutor(config.submitit_folder, _MAX_REQUEUES)
            executor.update_parameters(**parameters)
            with executor.batch():
                jobs = [executor.submit(work) for work in works]
    except (RuntimeError, OSError, ValueError) as error:  # submitit's own are RuntimeErrors
        raise JobError(f"SLURM refuses the jobs: {' '.join(str(error).split())}") from error
    return {work.folder: job.job_id for work, job in zip(works, jobs, strict=True)}


@contextlib.contextmanager
def _clean_environment(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Removes variables that override the settings: SBATCH_* of the user, SLURM_* inside a job."""
    from submitit.helpers import clean_env

    defaults = {"account", "partition", "qos", "constraint", "reservation"} - parameters.keys()
    names = ["SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in defaults)]
    kept = {name: os.environ[name] for name in names if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


def _sbatch_parameters(config: SlurmConfig, needs: Resources) -> dict[str, Any]:
    """The parameters of submitit's executor."""
    names = ("partition", "account", "qos", "constraint", "gres", "setup")
    given = {name: value for name in names if (value := getattr(config, name))}
    if needs.gpus_per_node:
        given["gpus_per_node"] = needs.gpus_per_node
    return given | {
        "job_name": "gr-sweep",
        "nodes": needs.nodes,
        "ntasks_per_node": needs.tasks_per_node,
        "cpus_per_task": needs.cpus_per_task,
        "mem": f"{needs.mem_gb}GB",
        "time": needs.timeout_min,
        "signal_delay_s": config.signal_delay_s,
        "array_parallelism": config.array_parallelism,
        "stderr_to_stdout": True,
        # Since SLURM 22.05 a step does not inherit its cores from its job. A task that fails ends
        # the others.
        "srun_args": [f"--cpus-per-task={needs.cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **config.additional_parameters},
    }


def wait_for(works: Sequence[Work], numbers: Mapping[Path, str], config: SlurmConfig) -> None:
    """Returns when every job has ended or has left the queue without a result."""
    left = {work.folder: work for work in works}
    gone_since: dict[Path, float] = {}
    while True:
        queue = queue_of_user()
        for folder in list(left):
            now, number = standing(folder), numbers.get(folder)
            # If the controller does not answer, the job may still be in the queue.
            is_gone = number is None or (queue is not None and number not in queue)
            if now.state is State.running or (now.state is not State.done and not is_gone):
                gone_since.pop(folder, None)
                continue
            if now.state not in (State.done, State.failed):
                if time.monotonic() - gone_since.setdefault(folder, time.monotonic()) <= FILES_S:
                    continue
                if number is not None:
                    why = _last_words(number, config, now.error)
                    change_record(folder, state=State.stopped, error=why)
            say_end(left.pop(folder), f"{len(works) - len(left)} of {len(works)}")
        if not left:
            return
        time.sleep(POLL_S)


def _last_words(number: str, config: SlurmConfig, error: str | None) -> str:
    """Why a job that left the queue has no result, as far as SLURM and the job's record say."""
    from submitit.core.utils import JobPaths

    how = f"left the queue ({_job_state(number) or 'its state is not known'})"
    log = JobPaths(config.submitit_folder, number).stdout
    how += f": {error}" if error else ""
    return f"SLURM job {number} {how}; see {log}; the same command resumes the job"


def _job_state(number: str) -> str | None:
    found = re.search(r"JobState=(\w+)", ask(["scontrol", "show", "job", number]) or "")
    return found[1] if found else None


def is_cancelled() -> bool:
    """Whether this process runs a SLURM job that is cancelled: to requeue it would undo that."""
    number = Holder.here().slurm_job
    return number is not None and _job_state(number) in ("CANCELLED", "COMPLETING")


def _print_what_stays(works: Sequence[Work], numbers: Mapping[Path, str], sweep: Path) -> None:
    left = [work.folder for work in works if standing(work.folder).state is not State.done]
    jobs = sorted({numbers[folder].split("_")[0] for folder in left if folder in numbers})
    if jobs:
        print(
            "\nthe jobs stay in the queue; gr-sweep status "
            f"{shlex.quote(str(sweep))} --watch shows them; to end them: scancel {' '.join(jobs)}",
            file=sys.stderr,
        )


def queue_of_user() -> set[str] | None:
    """Numbers of the user's jobs in the queue, each task of an array by itself; None if SLURM does
    not answer."""
    answer = ask(["squeue", "--all", "--noheader", "--array", f"--user={os.getuid()}", "-o%i"])
    return None if answer is None else set(answer.split())


def ask(command: list[str]) -> str | None:
    """What a command of SLURM prints; None if it fails or does not answer."""
    answer = _run(command)
    return None if answer is None or answer.returncode else answer.stdout


def _run(command: list[str]) -> "subprocess.CompletedProcess[str] | None":
    """None if the command is missing or does not end."""
    # SQUEUE_STATES and similar variables would hide jobs.
    env = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, env=env)
    return None


def await_kill() -> None:
    """Waits until SLURM ends this process, if it runs a SLURM job that was told to stop.

    A job that exits by itself counts as completed, and is not requeued after a preemption.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        time.sleep(KILL_S)
