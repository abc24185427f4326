"""Jobs of a sweep as SLURM jobs, through submitit; a job's own files say what became of it.

SLURM's accounting may be missing, a job may be requeued, and this process may be gone while jobs
run: so the queue says who is still to come, `gr_sweep.folder` who is done. What submitit pickles as
a result is not read.
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr_sweep.errors import ConfigError, JobError
from gr_sweep.folder import CHECKPOINTS, State, note_end
from gr_sweep.launch.resources import Resources
from gr_sweep.launch.work import Told, Work

POLL_S = 5.0
"""Seconds between looks at the queue."""

_FILES_S = 10.0
"""What a node wrote last may be seen here so much later."""

_COMMAND_S = 60.0
"""How long SLURM's commands may take; the controller of a large cluster can be slow."""

_ARRAY = 1000
"""Jobs of one array: SLURM's default limit is 1001."""

_BY_HAND = ("CANCELLED",)
"""States of a job that somebody wanted to end."""


@dataclass
class SlurmConfig:
    """`hydra/launcher=slurm`. What is null follows from what each job needs
    (`gr-sweep estimate`)."""

    _target_: str = "gr_sweep.cli.launchers.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    """As sbatch takes it; gpus_per_node is then 0 unless it is given."""
    comment: str | None = None
    name: str = "gr-sweep"
    """Of the jobs, in the queue."""
    gpu: str | None = "h100"
    """The cluster's GPUs, for the estimate (`gr-sweep estimate --help` lists them); null: jobs run
    on CPUs."""
    nodes: int | None = None
    gpus_per_node: int | None = None
    """And tasks, one a GPU."""
    max_gpus_per_node: int = 8
    """A job that needs more runs on several nodes."""
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    """Main memory of a node, GB."""
    timeout_min: int | None = None
    """Time limit; a job that reaches it goes on in the queue, from where it was."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which a job is told to save and stop."""
    max_num_timeout: int = 1000
    """How often a job may go on after its time limit."""
    max_restarts: int = 2
    """How often in a row a job that ended without a word (a node that died) is submitted again
    though it got no further."""
    array_parallelism: int = 256
    """Jobs of an array that run at once."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the job, such as `module load cuda`."""
    srun_args: list[str] = field(default_factory=lambda: ["--kill-on-bad-exit=1"])
    """More words for srun; by default one task that dies ends the others."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch, such as {reservation: friday}."""
    submitit_folder: str = "${hydra.sweep.dir}/.submitit/%j"
    """Scripts, pickles and output of the jobs; %j is the number in the queue."""


def check_slurm() -> None:
    """
    Raises:
        ConfigError: no SLURM here, or no submitit.
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
            f"hydra/launcher=slurm: {', '.join(missing)} not found on this machine; start the "
            "command where jobs are submitted, or use hydra/launcher=local_parallel"
        )


class Submitted:
    """Which SLURM job was last submitted for a folder: a line each, appended."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, numbers: Mapping[Path, str]) -> None:
        """Remembers them, on the disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for folder, number in numbers.items():
                file.write(json.dumps({"job": folder.name, "slurm_job": number}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, str]:
        """By the folder's name; a torn line, of a process that was killed, says nothing."""
        found: dict[str, str] = {}
        if not self._path.exists():
            return found
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                found[str(row["job"])] = str(row["slurm_job"])
            except (ValueError, KeyError, TypeError):
                continue
        return found


def run_on_slurm(
    works: Sequence[Work],
    config: SlurmConfig,
    resources: Mapping[Path, Resources],
    sweep: Path,
) -> None:
    """Submits the jobs that are not in the queue already, and waits until all have ended.

    Ctrl-C leaves the jobs where they are; the same command waits for them again.

    Args:
        works: the jobs.
        config: the launcher's.
        resources: of each job, by its folder; those that need the same form an array.
        sweep: the sweep's folder.

    Raises:
        JobError: sbatch refuses a job.
    """
    submitted = Submitted(sweep / ".submitit" / "submitted.jsonl")
    told = Told(works)
    before, queue = submitted.read(), states_in_queue() or {}
    numbers = {
        work.folder: before[work.folder.name]
        for work in works
        if before.get(work.folder.name) in queue
    }
    for work in works:
        if work.folder in numbers:
            told.say(work, f"in the queue already (SLURM job {numbers[work.folder]})")
    new = [work for work in works if work.folder not in numbers]
    numbers |= _submit(new, config, resources, submitted)
    _wait(works, numbers, config, resources, submitted, told)


def _wait(
    works: Sequence[Work],
    numbers: dict[Path, str],
    config: SlurmConfig,
    resources: Mapping[Path, Resources],
    submitted: Submitted,
    told: Told,
) -> None:
    left = {work.folder: work for work in works}
    gone_since: dict[Path, float] = {}
    restarts: dict[Path, int] = {}
    reached: dict[Path, int] = {}
    while left:
        queue = states_in_queue()
        again = []
        for folder, work in list(left.items()):
            now = told.look(work)
            # A controller that does not answer says nothing of the jobs.
            if queue is None or numbers[folder] in queue:
                gone_since.pop(folder, None)
                continue
            since = gone_since.setdefault(folder, time.monotonic())
            if now.state not in (State.done, State.failed) and time.monotonic() - since < _FILES_S:
                continue
            del gone_since[folder]
            if now.state in (State.done, State.failed):
                told.end(left.pop(folder))
                continue
            state = final_state(numbers[folder])
            step = _newest_step(folder)
            if step > reached.get(folder, -1):
                restarts[folder] = 0
            reached[folder] = step
            restarts[folder] = restarts.get(folder, 0) + 1
            if state in _BY_HAND or restarts[folder] > config.max_restarts:
                hint = "; set hydra.launcher.mem_gb higher" if state == "OUT_OF_MEMORY" else ""
                note_end(
                    folder,
                    State.stopped if state in _BY_HAND else State.failed,
                    f"SLURM job {numbers[folder]} ended as {state}{hint}; see "
                    f"{Path(config.submitit_folder).parent}",
                )
                told.end(left.pop(folder))
                continue
            told.say(work, f"SLURM job {numbers[folder]} ended as {state}; submitted again")
            again.append(work)
        if again:
            numbers |= _submit(again, config, resources, submitted)
        if left:
            time.sleep(POLL_S)


def _newest_step(folder: Path) -> int:
    names = (path.name.removeprefix("step_") for path in folder.glob(f"{CHECKPOINTS}/step_*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _submit(
    works: Sequence[Work],
    config: SlurmConfig,
    resources: Mapping[Path, Resources],
    submitted: Submitted,
) -> dict[Path, str]:
    """The number of each in the queue; those that need the same are one array."""
    alike: dict[Resources, list[Work]] = {}
    for work in works:
        work.announce()
        alike.setdefault(resources[work.folder], []).append(work)
    numbers: dict[Path, str] = {}
    for needs, group in alike.items():
        for start in range(0, len(group), _ARRAY):
            found = _sbatch(group[start : start + _ARRAY], config, needs)
            submitted.add(found)
            numbers |= found
    return numbers


def _sbatch(works: Sequence[Work], config: SlurmConfig, needs: Resources) -> dict[Path, str]:
    import submitit

    executor = submitit.SlurmExecutor(config.submitit_folder, config.max_num_timeout)
    parameters = sbatch_parameters(config, needs)
    try:
        executor.update_parameters(**parameters)
        with executor.batch():
            jobs = [executor.submit(work.call) for work in works]
    except (
        submitit.core.utils.FailedSubmissionError,
        submitit.core.utils.FailedJobError,
        subprocess.SubprocessError,
        OSError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        raise JobError(f"SLURM does not take the jobs: {reason}") from error
    return {work.folder: job.job_id for work, job in zip(works, jobs, strict=True)}


def sbatch_parameters(config: SlurmConfig, needs: Resources) -> dict[str, Any]:
    """What submitit is told, by its names."""
    plain = {
        name: getattr(config, name)
        for name in ("partition", "account", "qos", "constraint", "exclude", "gres", "comment")
    }
    return {name: value for name, value in plain.items() if value is not None} | {
        "job_name": config.name,
        "nodes": needs.nodes,
        "ntasks_per_node": needs.tasks_per_node,
        "cpus_per_task": needs.cpus_per_task,
        "mem": f"{needs.mem_gb}GB",
        "time": needs.timeout_min,
        "signal_delay_s": config.signal_delay_s,
        "array_parallelism": config.array_parallelism,
        "stderr_to_stdout": True,
        "srun_args": config.srun_args,
        "additional_parameters": {"requeue": True, **config.additional_parameters},
        **({"gpus_per_node": needs.gpus_per_node} if needs.gpus_per_node else {}),
        **({"setup": config.setup} if config.setup else {}),
    }


def states_in_queue() -> dict[str, str] | None:
    """State of each of the user's jobs that SLURM has not ended, tasks of arrays one by one; None
    where SLURM does not answer."""
    user = pwd.getpwuid(os.getuid()).pw_name
    answer = _ask(["squeue", "--noheader", "--array", f"--user={user}", "--format=%i|%T"])
    return None if answer is None else parse_queue(answer.splitlines())


def parse_queue(lines: Iterable[str]) -> dict[str, str]:
    """`12_3|RUNNING` gives {"12_3": "RUNNING"}."""
    rows = (line.strip().split("|") for line in lines)
    return {row[0]: row[1] for row in rows if len(row) == 2}


def final_state(number: str) -> str:
    """How SLURM says that a job ended, as far as it still knows: it forgets after minutes."""
    answer = _ask(["scontrol", "show", "job", number])
    found = re.search(r"JobState=(\w+)", answer or "")
    return found[1] if found else "unknown"


def _ask(command: list[str]) -> str | None:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def is_waiting_in_queue(sweep: Path) -> dict[str, str]:
    """SLURM number of the sweep's jobs that are in the queue, by folder name; for `status`."""
    before = Submitted(sweep / ".submitit" / "submitted.jsonl").read()
    if not before or shutil.which("squeue") is None:
        return {}
    queue = states_in_queue() or {}
    return {job: number for job, number in before.items() if number in queue}
