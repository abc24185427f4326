"""Jobs of a sweep as SLURM jobs, through submitit; a job's own files say what became of it.

SLURM's accounting may be missing, a job may be requeued, and this process may be gone while jobs
run: so the queue says who is still to come, `gr_sweep.jobdir` who is done. What submitit pickles as
a result is not read.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gr_sweep.errors import ConfigError, JobError
from gr_sweep.jobdir import Holder, State, newest_step, standing
from gr_sweep.joblock import announce, note_end
from gr_sweep.launch.resources import Resources
from gr_sweep.launch.work import Told, Work

POLL_S = 5.0
"""Seconds between looks at the queue."""

FILES_S = 30.0
"""What a node wrote last may be seen here so much later."""

ANSWER_S = 300.0
"""How long a start waits for a controller that does not answer."""

KILL_S = 600.0
"""The longest that a job which was told to end waits for SLURM to do it."""

_COMMAND_S = 60.0
"""How long SLURM's commands may take; the controller of a large cluster can be slow."""

_ARRAY = 1000
"""Jobs of one array, where SLURM does not say how many it takes: its default is 1001."""

UNKNOWN = "unknown"
"""State of a job that SLURM has forgotten."""

_BY_HAND = ("CANCELLED",)
"""States of a job that somebody wanted to end."""

_USUAL_REASONS = {
    "None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning", "Prolog",
}  # fmt: skip
"""Why a job waits that will start by itself."""


@dataclass
class SlurmConfig:
    """`hydra/launcher=slurm`. What is null follows from what each job needs
    (`gr-sweep estimate`)."""

    _target_: str = "gr_sweep.cli.launchers.SlurmLauncher"
    """What tells it from Hydra's own launchers: no class, but a name that Hydra lets pass."""
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
    signal_delay_s: int = 300
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
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    """Scripts, pickles and output of the jobs. Not one for each number in the queue (%j), as
    submitit likes it: SLURM can start a job before that folder is made, and then loses it."""


def check_slurm(config: SlurmConfig) -> None:
    """
    Raises:
        ConfigError: no SLURM here, or no submitit, or a number that is too small.
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
    least = {"array_parallelism": 1, "signal_delay_s": 1, "max_num_timeout": 0, "max_restarts": 0}
    for name, number in least.items():
        if getattr(config, name) < number:
            raise ConfigError(
                f"hydra.launcher.{name}={getattr(config, name)} is too few; give {number} or more"
            )


class Submitted:
    """Which SLURM job was last submitted for a folder: a line each, appended."""

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._path = sweep / ".submitit" / "submitted.jsonl"

    def add(self, numbers: Mapping[Path, str]) -> None:
        """Remembers them, on the disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            json.dumps({"job": os.path.relpath(folder, self._sweep), "slurm_job": number})
            for folder, number in numbers.items()
        )
        with self._path.open("a", encoding="utf-8") as file:
            # A line break first: the last line may be torn.
            file.write("".join(f"\n{line}" for line in lines) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, str]:
        """By the folder's name in that of the sweep; a torn line, of a process that was killed,
        says nothing."""
        found: dict[str, str] = {}
        if not self._path.exists():
            return found
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found[str(row["job"])] = str(row["slurm_job"])
        return found

    def numbers(self, works: Sequence[Work]) -> dict[Path, str]:
        """Of those jobs for which there is one."""
        found = self.read()
        names = {work.folder: os.path.relpath(work.folder, self._sweep) for work in works}
        return {folder: found[name] for folder, name in names.items() if name in found}


def run_on_slurm(
    works: Sequence[Work],
    config: SlurmConfig,
    resources: Mapping[Path, Resources],
    sweep: Path,
    *,
    is_shown: bool = False,
) -> None:
    """Submits the jobs that are not in the queue already, and waits until all have ended.

    A job that another process runs is waited for. Ctrl-C leaves the jobs where they are; the same
    command waits for them again.

    Args:
        works: the jobs.
        config: the launcher's.
        resources: of each job, by its folder; those that need the same form an array.
        sweep: the sweep's folder.
        is_shown: whether a table on the terminal shows how the jobs stand, as `Told` has it.

    Raises:
        JobError: sbatch refuses all jobs, or the controller does not answer.
    """
    watch = _Watch(works, config, resources, Submitted(sweep), Told(works, is_shown=is_shown))
    try:
        watch.begin()
        while watch.left:
            watch.look()
            if watch.left:
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        watch.say_what_stays(sweep)
        raise


class _Watch:
    """Jobs on their way to their end."""

    def __init__(
        self,
        works: Sequence[Work],
        config: SlurmConfig,
        resources: Mapping[Path, Resources],
        submitted: Submitted,
        told: Told,
    ) -> None:
        self.left = {work.folder: work for work in works}
        self._config = config
        self._resources = resources
        self._submitted = submitted
        self._told = told
        self._numbers: dict[Path, str] = {}
        """Last one in the queue."""
        self._gone_since: dict[Path, float] = {}
        self._restarts: dict[Path, int] = {}
        """In a row, without progress."""
        self._reached: dict[Path, int] = {}
        """Step of the last checkpoint when the job was last lost."""
        self._told_reasons: set[str] = set()

    def begin(self) -> None:
        """Finds the jobs that are in the queue, and submits the others."""
        works = list(self.left.values())
        before = self._submitted.numbers(works)
        # Without an answer they would be submitted a second time.
        queue = _queue_in_time() if before else {}
        self._numbers = {folder: number for folder, number in before.items() if number in queue}
        new = []
        for work in works:
            if work.folder in self._numbers:
                self._told.say(
                    work, f"in the queue already (SLURM job {self._numbers[work.folder]})"
                )
            elif standing(work.folder).state is not State.running:
                new.append(work)
        refused = self._submit(new)
        if refused and not self._numbers:
            raise refused[0][1]  # nothing is in the queue that could be waited for
        self._note_refused(refused)

    def look(self) -> None:
        """One look at the queue and at the files."""
        queue = queue_of_user()
        self._tell_reasons(queue or {})
        again = []
        for folder, work in list(self.left.items()):
            state = self._told.look(work).state
            number = self._numbers.get(folder)
            # A controller that does not answer says nothing of the jobs.
            is_gone = number is None or (queue is not None and number not in queue)
            if state is State.done or (state is State.failed and is_gone):
                self._told.end(self.left.pop(folder))
            elif not is_gone or state is State.running:
                self._gone_since.pop(folder, None)
            elif number is None:
                if queue is not None:
                    again.append(work)
            elif time.monotonic() - self._gone_since.setdefault(folder, time.monotonic()) > FILES_S:
                del self._gone_since[folder]
                if self._may_go_on(work, number):
                    again.append(work)
                else:
                    self._told.end(self.left.pop(folder))
        self._note_refused(self._submit(again))

    def _may_go_on(self, work: Work, number: str) -> bool:
        """Whether a job that ended without a word is submitted again; if not, notes why."""
        folder, now = work.folder, standing(work.folder)
        state, step = final_state(number), newest_step(folder) or 0
        if state == UNKNOWN and now.state is State.waiting:
            # Of a part of an array that is cancelled before it begins SLURM keeps no trace.
            state = "CANCELLED"
        if step > self._reached.get(folder, -1):
            self._restarts[folder] = 0
        self._reached[folder] = step
        said = f" ({now.record.error})" if now.record is not None and now.record.error else ""
        if state not in _BY_HAND and self._restarts[folder] < self._config.max_restarts:
            self._restarts[folder] += 1
            self._told.say(work, f"SLURM job {number} ended as {state}{said}; submitted again")
            return True
        hint = "; set hydra.launcher.mem_gb higher" if state == "OUT_OF_MEMORY" else ""
        note_end(
            folder,
            State.stopped if state in _BY_HAND else State.failed,
            f"SLURM job {number} ended as {state}{said}{hint}; see {self._output(number)}",
        )
        return False

    def _output(self, number: str) -> Path:
        from submitit.core.utils import JobPaths

        return Path(JobPaths(self._config.submitit_folder, number).stdout)

    def _note_refused(self, refused: "Sequence[tuple[Sequence[Work], JobError]]") -> None:
        """What SLURM refuses has failed; where it does not answer, it is submitted later."""
        for works, error in refused:
            is_answering = queue_of_user() is not None
            for work in works:
                self._numbers.pop(work.folder, None)
                if is_answering:
                    note_end(work.folder, State.failed, str(error))
                    self._told.end(self.left.pop(work.folder))

    def _submit(self, works: Sequence[Work]) -> list[tuple[Sequence[Work], JobError]]:
        """Those that need the same are one array. Gives back those that SLURM refuses."""
        refused: list[tuple[Sequence[Work], JobError]] = []
        alike: dict[Resources, list[Work]] = {}
        for work in works:
            announce(work.folder, work.title)
            alike.setdefault(self._resources[work.folder], []).append(work)
        size = _largest_array() if len(works) > 1 else 1
        for needs, group in alike.items():
            for start in range(0, len(group), size):
                part = group[start : start + size]
                try:
                    found = _sbatch(part, self._config, needs)
                except JobError as error:
                    refused.append((part, error))
                    continue
                self._submitted.add(found)
                self._numbers |= found
        return refused

    def _tell_reasons(self, queue: "Mapping[str, Queued]") -> None:
        """Says once why SLURM holds jobs back that may never start."""
        mine = [queue[number] for number in self._numbers.values() if number in queue]
        reasons = Counter(job.reason for job in mine if job.state == "PENDING")
        for reason, count in reasons.items():
            if reason not in _USUAL_REASONS | self._told_reasons:
                print(f"SLURM holds {count} jobs back: {reason}", file=sys.stderr, flush=True)
                self._told_reasons.add(reason)

    def say_what_stays(self, sweep: Path) -> None:
        """For who leaves while jobs are in the queue."""
        left = {number.split("_")[0] for folder, number in self._numbers.items()
                if folder in self.left}  # fmt: skip
        if left:
            numbers = " ".join(sorted(left, key=int))
            see = f"gr-sweep status {shlex.quote(str(sweep))} --watch"
            print(
                f"\nthe jobs stay in the queue; {see} shows them; to end them: scancel {numbers}",
                file=sys.stderr,
            )


def _sbatch(works: Sequence[Work], config: SlurmConfig, needs: Resources) -> dict[Path, str]:
    """Submits jobs that need the same; gives the number of each."""
    import submitit

    parameters = sbatch_parameters(config, needs)
    try:
        # submitit prints what sbatch says, which is in the error too.
        with _plain_environment(parameters), contextlib.redirect_stderr(io.StringIO()):
            executor = submitit.SlurmExecutor(config.submitit_folder, config.max_num_timeout)
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


@contextlib.contextmanager
def _plain_environment(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Inside, nothing in the environment counts more than what was asked for: sbatch prefers
    SBATCH_* to the lines of its script, and a job that is started from a job inherits SLURM_*."""
    from submitit.helpers import clean_env

    defaults = {"account", "partition", "qos", "constraint", "reservation"} - parameters.keys()
    names = ["SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in defaults)]
    kept = {name: os.environ[name] for name in names if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


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
        # Since SLURM 22.05 a step does not take it over from its job.
        "srun_args": [f"--cpus-per-task={needs.cpus_per_task}", *config.srun_args],
        "additional_parameters": {"requeue": True, **config.additional_parameters},
        **({"gpus_per_node": needs.gpus_per_node} if needs.gpus_per_node else {}),
        **({"setup": config.setup} if config.setup else {}),
    }


class Queued(NamedTuple):
    """A job in the queue."""

    state: str
    reason: str
    """Why it waits."""


def _queue_in_time() -> dict[str, Queued]:
    """
    Raises:
        JobError: SLURM does not answer in time.
    """
    give_up = time.monotonic() + ANSWER_S
    while (queue := queue_of_user()) is None:
        if time.monotonic() > give_up:
            raise JobError(
                "squeue does not answer, so nobody knows which jobs are in the queue; type the "
                "command again when SLURM's controller is back"
            )
        time.sleep(POLL_S)
    return queue


def queue_of_user() -> dict[str, Queued] | None:
    """The user's jobs that SLURM has not ended, tasks of arrays one by one; None where SLURM does
    not answer."""
    answer = _ask(
        ["squeue", "--all", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
    )
    return None if answer is None else parse_queue(answer.splitlines())


def parse_queue(lines: Iterable[str]) -> dict[str, Queued]:
    """`12_3|PENDING|Priority` gives {"12_3": Queued("PENDING", "Priority")}."""
    rows = (line.strip().split("|", 2) for line in lines)
    return {row[0]: Queued(row[1], row[2]) for row in rows if len(row) == 3}


def final_state(number: str) -> str:
    """How SLURM says that a job ended, as far as it still knows: it forgets after minutes."""
    answer = _ask(["scontrol", "show", "job", number])
    found = re.search(r"JobState=(\w+)", answer or "")
    return found[1] if found else UNKNOWN


def _largest_array() -> int:
    answer = _ask(["scontrol", "show", "config"])
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", answer or "")
    # It is one more than the largest index, and 0 or 1 where there are no arrays.
    return min(_ARRAY, max(1, int(found[1]) - 1)) if found else _ARRAY


def _ask(command: list[str]) -> str | None:
    # SQUEUE_STATES and the like would hide jobs.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_S, env=plain
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def has_ended() -> bool:
    """In a job that SLURM told to end: whether SLURM has ended it already. It would undo a scancel
    to put such a job back into the queue."""
    number = Holder.here().slurm_job
    return number is not None and final_state(number) in ("COMPLETING", *_BY_HAND)


def await_kill() -> None:
    """In a job that SLURM told to end: waits until SLURM ends it.

    A job that ends by itself in the time that it is given counts as completed, and is not requeued.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        time.sleep(KILL_S)


def numbers_in_queue(sweep: Path) -> dict[str, str] | None:
    """SLURM number of the sweep's jobs that are in the queue, by folder name; for `status`. None
    where SLURM does not answer, which says nothing of the jobs."""
    before = Submitted(sweep).read()
    if not before or shutil.which("squeue") is None:
        return {}
    queue = queue_of_user()
    if queue is None:
        return None
    return {job: number for job, number in before.items() if number in queue}
