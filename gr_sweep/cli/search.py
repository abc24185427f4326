"""A search: Optuna chooses the settings of the next jobs from the results of those before.

Nothing is stored. Given its seed and the results of the same jobs, Optuna asks for the same trials
again, so a search that starts again finds its finished jobs and continues after them.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from gr_sweep.checks import check_values
from gr_sweep.cli.names import title_of
from gr_sweep.cli.overrides import allowed, values_of
from gr_sweep.cli.schema import OptunaConfig
from gr_sweep.cli.task import Job
from gr_sweep.config import Baseline, PlanKind
from gr_sweep.errors import ConfigError, GrSweepError, JobError
from gr_sweep.files import write_whole
from gr_sweep.jobdir import Record, State
from gr_sweep.metrics import registry
from gr_sweep.metrics.metric import PLACEHOLDER
from gr_sweep.report.collect import SEARCH, read_sweep
from gr_sweep.report.measures import BY_METRIC, Measure
from gr_sweep.report.sweep import Job as Result
from gr_sweep.train.distributed import connect

if TYPE_CHECKING:
    import optuna

    from gr_sweep.cli.compose import Command

DEFAULT_OBJECTIVES = ("utility/served_tax", "separability/served_removal")
FEWEST_FOR_IMPORTANCE = 10
"""Trials from which the importance of settings is computed."""

_MOST_WITHOUT = 3
"""Trials without objectives after which a search ends that has none with them."""
_MOST_REPEATS = 100
"""Trials that Optuna may ask for again before a search ends: it has tried all there is."""
_WHILE_TRAINING = ("train/", "eval/", "round/", "time_s")
"""Metrics that no finished job has."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A setting that is searched."""

    key: str
    lines: list[str]
    """Overrides that set each of its values; of an interval both ends and a value inside."""
    interval: IntervalSweep | None = None

    @classmethod
    def of(cls, override: Override) -> "Parameter":
        """The parameter that an override with several values describes.

        Raises:
            ConfigError: no values, or an interval without numbers.
        """
        key, value, line = override.get_key_element(), override.value(), override.input_line
        if not isinstance(value, IntervalSweep):
            return cls(key=key, lines=list(dict.fromkeys(values_of(override))))
        low, high = value.start or 0, value.end or 0
        if not -math.inf < low < high < math.inf:
            raise ConfigError(f"{line}: expected interval(LOW,HIGH) with LOW below HIGH")
        if value.tags - {"log"} or (value.tags and low <= 0):
            raise ConfigError(f"{line}: expected tag(log,interval(LOW,HIGH)) with LOW above 0")
        inside = type(low)(low + 0.382 * (high - low))
        return cls(key=key, lines=[_line(key, at) for at in (low, high, inside)], interval=value)

    def ask(self, trial: "optuna.Trial") -> str:
        """The override with the value that Optuna draws."""
        if self.interval is None:
            if _are_ascending(self.lines):  # so that Optuna knows which are neighbours
                return self.lines[trial.suggest_int(self.key, 0, len(self.lines) - 1)]
            return str(trial.suggest_categorical(self.key, self.lines))
        low: Any = self.interval.start
        high: Any = self.interval.end
        suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        return _line(self.key, suggest(self.key, low, high, log="log" in self.interval.tags))


def _value(at: int, trial: "optuna.trial.FrozenTrial") -> float:
    return trial.values[at]


def _line(key: str, value: float) -> str:
    """An override; a float has four digits, for short names."""
    return f"{key}={value}" if isinstance(value, int) else f"{key}={value:.4g}"


def _are_ascending(lines: Sequence[str]) -> bool:
    try:
        values = [float(line.partition("=")[2]) for line in lines]
    except ValueError:
        return False
    return values == sorted(values)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A number of a finished job that a search makes better."""

    name: str
    """As it is typed: a metric for its mean over domains, or the key of a single number."""
    measure: Measure
    parts: tuple[str, ...]
    """Names in the key; empty for the mean."""

    @classmethod
    def of(cls, name: str) -> "Objective":
        """The objective of this name.

        Raises:
            ConfigError: no metric of finished jobs has it, or one of which no direction is better.
        """
        metrics = {
            PLACEHOLDER.sub("", metric.key).replace("//", "/").rstrip("/"): metric
            for metric in registry.METRICS
            if metric.direction and not metric.key.startswith(_WHILE_TRAINING)
        }
        found = (metrics[name], ()) if name in metrics else registry.find(name)
        if found is None or found[0] not in metrics.values():
            raise ConfigError(f"invalid value for objective: {name!r}; {allowed(name, [*metrics])}")
        metric, parts = found
        measure = BY_METRIC.get(metric) or Measure(metric)
        return cls(name=name, measure=measure, parts=parts)

    def value(self, job: Result) -> float | None:
        """The job's number, or the bound where only a bound is known; None if it has neither."""
        if self.parts:
            value = job.metrics.get(self.name)
        else:
            estimate = self.measure.of(job)
            value = None if estimate is None else estimate.value
        return None if value is None else min(value, self.measure.most)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that Optuna asks for."""

    asked: "optuna.Trial"
    number: int
    """From 1; trials that Optuna asks for again have none."""
    lines: tuple[str, ...]
    """Overrides of the searched settings."""
    jobs: list[Job]
    """One for each seed."""


class Search:
    """Asks Optuna for trials, and tells it what came of their jobs."""

    def __init__(
        self,
        config: OptunaConfig,
        objectives: Sequence[str],
        parameters: Sequence[Parameter],
        jobs_of: Callable[[Sequence[str]], tuple[list[Job], list[Job]]],
    ) -> None:
        """
        Args:
            objectives: names of metrics; empty for the default.
            jobs_of: from the overrides of the searched settings to the jobs of a trial, and those
                among them and their baselines that no earlier trial has.

        Raises:
            ConfigError: optuna is missing, a setting is invalid, or no setting has several values.
        """
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "hydra/sweeper=optuna needs optuna: pip install 'gr-sweep[search]'"
            ) from error
        check_values(config, "hydra.sweeper")
        if not parameters:
            raise ConfigError(
                "nothing to search; give a setting several values, such as "
                "train.block_lr=interval(1,4) or plan=peers,tree (of seeds a search takes the mean)"
            )
        self._config, self._parameters, self._jobs_of = config, parameters, jobs_of
        self._objectives = [Objective.of(name) for name in objectives or DEFAULT_OBJECTIVES]
        self.baselines: list[Baseline] = [
            baseline for of in self._objectives for baseline in of.measure.metric.baselines
        ]
        """Runs without which the objectives are absent."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        is_more = [of.measure.metric.direction > 0 for of in self._objectives]
        self._study = optuna.create_study(
            directions=["maximize" if more else "minimize" for more in is_more],
            sampler=optuna.samplers.TPESampler(seed=config.seed),
        )
        self._running: list[Trial] = []
        self._done: list[Trial] = []
        """Those that have all objectives."""
        self._told: dict[tuple[str, ...], list[float]] = {}
        """Objectives by overrides; none for a trial that runs or has failed."""

    def ask(self) -> list[Job]:
        """The new jobs of the next `n_jobs` trials.

        A trial whose settings do not go together has failed, and the next takes its place. One that
        Optuna asks for again does not count.

        Raises:
            GrSweepError: no trial of the search can run.
        """
        jobs: list[Job] = []
        repeats = 0
        while len(self._running) < self._config.n_jobs and repeats < _MOST_REPEATS:
            if len(self._told) == self._config.n_trials:
                break
            asked = self._study.ask()
            lines = tuple(of.ask(asked) for of in self._parameters)
            if lines in self._told:
                repeats += 1
                self._tell(asked, self._told[lines])
                continue
            self._told[lines] = []
            trial = Trial(asked=asked, number=len(self._told), lines=lines, jobs=[])
            try:
                own, new = self._jobs_of(lines)
            except GrSweepError as error:
                self._end(trial, None, str(error))
                if trial.number == self._config.n_trials and not (self._running or self._done):
                    raise
                continue
            self._running.append(replace(trial, jobs=own))
            jobs += new
        return jobs

    def run(
        self, command: "Command", run_jobs: Callable[["Command"], list[Record]]
    ) -> tuple["Command", list[Record]]:
        """Runs the trials, the first of which are those of the command.

        Args:
            run_jobs: runs the jobs of a command, except those that are done.

        Returns:
            The command with all jobs of the search, and how those ended that ran.

        Raises:
            JobError: another process runs one of the jobs, or finished jobs lack the objectives.
        """
        processes = connect()
        jobs: list[Job] = []
        outcomes: list[Record] = []
        new, num_without = command.jobs, 0
        while self._running:
            jobs += new
            outcomes += run_jobs(replace(command, jobs=new))
            if any(outcome.state is State.running for outcome in outcomes):
                raise JobError("another process runs jobs of this search; wait until it has ended")
            # Jobs that can be baselines, and those of the trials.
            read = [job.folder for job in jobs if job.config.plan.kind is PlanKind.none]
            read += [job.folder for trial in self._running for job in trial.jobs]
            results = processes.from_main(partial(self._results, command.folder, read))
            for trial, values in zip(self._running, results, strict=True):
                self._end(trial, values)
                num_without += values is not None and None in values
            if num_without >= _MOST_WITHOUT and not self._done:
                names = " and ".join(of.name for of in self._objectives)
                raise JobError(f"no finished job has {names}; choose other objectives")
            self._running = []
            new = self.ask()
        if processes.is_main:
            self._write(command.folder)
        return replace(command, jobs=jobs), outcomes

    def _results(self, folder: Path, read: Sequence[Path]) -> list[list[float | None] | None]:
        """For each running trial its objectives, means over its jobs, None where a job lacks one;
        None if a job is not done."""
        found = {job.name: job for job in read_sweep(folder, read).jobs}

        def mean(objective: Objective, jobs: Sequence[Result]) -> float | None:
            values = [value for job in jobs if (value := objective.value(job)) is not None]
            return fmean(values) if len(values) == len(jobs) else None

        results: list[list[float | None] | None] = []
        for trial in self._running:
            jobs = [found[job.folder.name] for job in trial.jobs if job.folder.name in found]
            is_done = len(jobs) == len(trial.jobs)
            results.append([mean(of, jobs) for of in self._objectives] if is_done else None)
        return results

    def _tell(self, asked: "optuna.Trial", values: Sequence[float]) -> None:
        from optuna.trial import TrialState

        self._study.tell(asked, values or None, None if values else TrialState.FAIL)

    def _end(
        self, trial: Trial, values: Sequence[float | None] | None, said: str = "failed"
    ) -> None:
        """Tells Optuna and the user the objectives of a trial, or that it has none."""
        known = [value for value in values or () if value is not None]
        if len(known) == len(self._objectives):
            self._told[trial.lines] = known
            self._done.append(trial)
        self._tell(trial.asked, self._told[trial.lines])
        if values is not None:
            numbers = ["none" if value is None else f"{value:.4g}" for value in values]
            names = [of.name for of in self._objectives]
            said = ", ".join(map(" ".join, zip(names, numbers, strict=True)))
        if connect().is_main:
            at = f"trial {trial.number} of {self._config.n_trials}"
            print(f"{at}: {title_of(trial.lines)}: {said}", file=sys.stderr)

    def _write(self, folder: Path) -> None:
        """Writes into the sweep's folder what the report shows of the search."""
        content = {
            "objectives": {of.name: of.measure.metric.key for of in self._objectives},
            "trials": len(self._done),
            "jobs": [[job.folder.name for job in trial.jobs] for trial in self._done],
            "importance": self._importance(),
        }
        write_whole(folder / SEARCH, json.dumps(content, indent=1))

    def _importance(self) -> dict[str, dict[str, float]]:
        """For each objective the share of its variance over the searched values that each setting
        explains; empty after few trials.

        fANOVA (Hutter et al. 2014): on 12 to 40 trials of a known function it found the setting
        that matters more often than PED-ANOVA.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        if len(self._done) < FEWEST_FOR_IMPORTANCE:
            return {}
        trials = self._study.get_trials(states=[TrialState.COMPLETE])
        found = {}
        for at, objective in enumerate(self._objectives):
            if len({trial.values[at] for trial in trials}) > 1:
                shares = get_param_importances(
                    self._study,
                    evaluator=FanovaImportanceEvaluator(seed=0),
                    target=partial(_value, at),
                )
                found[objective.name] = {key.lstrip("+"): float(of) for key, of in shares.items()}
        return found
