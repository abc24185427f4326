"""A search: Optuna chooses the settings of the next jobs from the results of those before.

Nothing is stored. Given its seed and the results of the same jobs, Optuna asks for the same trials
again, so a search that starts again finds its finished jobs and continues after them.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from gr_sweep.checks import check_values
from gr_sweep.cli.overrides import allowed, title_of, values_of
from gr_sweep.cli.schema import OptunaConfig
from gr_sweep.cli.task import Job
from gr_sweep.config import Baseline
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
        """The parameter that an override with several values describes."""
        key, value, line = override.get_key_element(), override.value(), override.input_line
        if not isinstance(value, IntervalSweep):
            return cls(key=key, lines=list(dict.fromkeys(values_of(override))))
        low, high = value.start or 0, value.end or 0
        lowest = 0 if value.tags else -math.inf
        if not lowest < low < high < math.inf or value.tags - {"log"}:
            raise ConfigError(
                f"{line}: expected interval(LOW,HIGH) with LOW below HIGH, or "
                "tag(log,interval(LOW,HIGH)) with LOW above 0"
            )
        inside = type(low)(low + 0.382 * (high - low))
        return cls(key=key, lines=[_line(key, at) for at in (low, high, inside)], interval=value)

    def ask(self, trial: "optuna.Trial") -> str:
        """The override with the value that Optuna draws."""
        if self.interval is None:
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
        """The objective of this name, which must be of a metric that finished jobs have and of
        which more or less is better."""
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

    def mean(self, jobs: Sequence[Result]) -> float | None:
        """The mean of the jobs' numbers, or of bounds where only those are known; None where a job
        has neither."""
        values = []
        for job in jobs:
            estimate = job.estimate(self.name) if self.parts else self.measure.of(job)
            if estimate is None:
                return None
            values.append(min(estimate.value, self.measure.most))
        return fmean(values)


@dataclass(kw_only=True)
class Trial:
    """Settings that Optuna has asked for."""

    asked: "optuna.Trial"
    number: int
    """From 1."""
    lines: tuple[str, ...]
    """Overrides of the searched settings."""
    jobs: list[Job] = field(default_factory=list)
    """One for each seed."""
    values: list[float] = field(default_factory=list)
    """Its objectives; none while it runs or if it has failed."""


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
        metrics = [objective.measure.metric for objective in self._objectives]
        self.baselines: list[Baseline] = [of for metric in metrics for of in metric.baselines]
        """Runs without which the objectives are absent."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["maximize" if of.direction > 0 else "minimize" for of in metrics],
            sampler=optuna.samplers.TPESampler(seed=config.seed),
        )
        self._trials: dict[tuple[str, ...], Trial] = {}
        """By their overrides."""
        self._running: list[Trial] = []

    @property
    def _done(self) -> list[Trial]:
        return [trial for trial in self._trials.values() if trial.values]

    def ask(self) -> list[Job]:
        """The new jobs of the next `n_jobs` trials.

        A trial whose settings do not go together has failed, and the next takes its place; the
        error is raised if no trial of the search can run. One that is asked again does not count.
        """
        most, jobs, repeats = self._config.n_trials, list[Job](), 0
        while len(self._running) < self._config.n_jobs and len(self._trials) < most:
            asked = self._study.ask()
            lines = tuple(of.ask(asked) for of in self._parameters)
            if lines in self._trials:
                self._tell(asked, self._trials[lines].values)
                repeats += 1
                if repeats == _MOST_REPEATS:
                    break
                continue
            trial = Trial(asked=asked, number=len(self._trials) + 1, lines=lines)
            self._trials[lines] = trial
            try:
                trial.jobs, new = self._jobs_of(lines)
            except GrSweepError as error:
                if trial.number == most and not (self._running or self._done):
                    raise
                self._tell(asked, [])
                self._say(trial, str(error))
                continue
            self._running.append(trial)
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
            folders = [job.folder for job in jobs]
            results = processes.from_main(partial(self._results, command.folder, folders))
            for trial, values in zip(self._running, results, strict=True):
                if values and None not in values:
                    trial.values = [value for value in values if value is not None]
                num_without += None in values
                self._tell(trial.asked, trial.values)
                numbers = ["none" if value is None else f"{value:.4g}" for value in values]
                names = [of.name for of in self._objectives]
                said = ", ".join(map(" ".join, zip(names, numbers, strict=False)))
                self._say(trial, said or "failed")
            if num_without >= _MOST_WITHOUT and not self._done:
                names = [of.name for of in self._objectives]
                raise JobError(
                    f"no finished job has {' and '.join(names)}; choose other objectives"
                )
            self._running = []
            new = self.ask()
        if processes.is_main:
            self._write(command.folder)
        return replace(command, jobs=jobs), outcomes

    def _results(self, folder: Path, read: Sequence[Path]) -> list[list[float | None]]:
        """For each running trial its objectives, None for one that a job lacks; none of them if a
        job is not done."""
        found = {job.name: job for job in read_sweep(folder, read).jobs}
        results: list[list[float | None]] = []
        for trial in self._running:
            jobs = [found[job.folder.name] for job in trial.jobs if job.folder.name in found]
            is_done = len(jobs) == len(trial.jobs)
            results.append([of.mean(jobs) for of in self._objectives if is_done])
        return results

    def _tell(self, asked: "optuna.Trial", values: Sequence[float]) -> None:
        from optuna.trial import TrialState

        self._study.tell(asked, values or None, None if values else TrialState.FAIL)

    def _say(self, trial: Trial, said: str) -> None:
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

        found = {}
        for at, objective in enumerate(self._objectives):
            values = {trial.values[at] for trial in self._done}
            if len(self._done) >= FEWEST_FOR_IMPORTANCE and len(values) > 1:
                shares = get_param_importances(
                    self._study,
                    evaluator=FanovaImportanceEvaluator(seed=0),
                    target=partial(_value, at),
                )
                found[objective.name] = {key.lstrip("+"): float(of) for key, of in shares.items()}
        return found
