"""Weights & Biases as a tracker.

Trouble with W&B never fails a job: it is logged as one warning, and metrics.jsonl has every row.
A job waits at most `CONNECT_TIMEOUT_S` for a server, then logs offline, and at its end at most
`UPLOAD_TIMEOUT_S` for the upload.

A job that `wandb agent` started logs to the agent's run, with the project, the entity and the
settings that the agent gave wandb; every other job to a run of its own.

W&B's history holds the rows of metrics.jsonl: the number of a row in the file is its step in W&B.
A resumed job continues its run: it replays all rows, of which W&B ignores those that it has.
Offline, each start writes a log of its own that holds all rows so far, and marks the earlier ones
as synced, so that `wandb sync` uploads no row twice.

Written for wandb 0.31, where `wandb.init` without `mode` prompts on a terminal.
"""

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth

from gr_sweep.config import TrackingMode
from gr_sweep.errors import ConfigError
from gr_sweep.files import write_whole
from gr_sweep.jobdir import METRICS
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import (
    HEAT_MAP,
    RUN_ID,
    STEP,
    STEP_FIELD,
    agents_run_id,
    read_run_id,
)
from gr_sweep.tracking.jsonl import JsonlTracker, finite, read_rows

CONNECT_TIMEOUT_S = 10.0
"""Longest wait for a W&B server at the start of a job, which then logs offline."""

UPLOAD_TIMEOUT_S = 60.0
"""Longest wait for the upload at the end of a job. The rest stays on disk, for `wandb sync`."""

_OF_AGENT = ("RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH")
"""WANDB_ variables by which `wandb agent` names a run and its settings."""

_OTHER_RUN = ("RESUME", "RESUME_FROM", "FORK_FROM", "LAUNCH", "LAUNCH_CONFIG_PATH")
"""More WANDB_ variables that would take the place of a job's own id or config."""

_ERROR = "gr_sweep/error"

_log = logging.getLogger(__name__)


def wandb_settings() -> wandb.Settings:
    """W&B's settings from the environment and its files. Unlike wandb.setup(), starts no process.

    Raises:
        ConfigError: a WANDB_ variable that wandb refuses.
    """
    # wandb reads its variables here.
    for name in _OTHER_RUN if agents_run_id() else (*_OTHER_RUN, *_OF_AGENT):
        os.environ.pop(f"WANDB_{name}", None)
    # Print nothing, and send no reports about wandb itself.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        return wandb_setup.singleton().settings
    except (wandb.Error, ValueError) as error:  # pydantic's errors are ValueErrors
        raise ConfigError(
            f"W&B cannot be used: {one_line(error)}; fix the WANDB_ variables or use tracking=off"
        ) from error


def has_key() -> bool:
    """Whether wandb finds an API key. Reads the environment and files, no network.

    Raises:
        ConfigError: a key, or a WANDB_ variable, that wandb refuses.
    """
    host = wandb_settings().base_url
    try:
        found = wbauth.authenticate_session(
            host=host, source="gr-sweep", prompt=False, update_session=False
        )
    except wandb.Error as error:
        raise ConfigError(f"W&B cannot be used: {one_line(error)}; run `wandb login`") from error
    return found is not None


def resolve_mode(mode: TrackingMode) -> TrackingMode:
    """The mode that `mode` amounts to on this machine: online, offline or off. No network.

    `auto` follows WANDB_MODE and `wandb offline` where they say offline or disabled, and is online
    where a key is configured.

    Raises:
        ConfigError: mode is online and no API key is configured.
    """
    if mode is TrackingMode.online and not has_key():
        raise ConfigError(
            "tracking=online finds no W&B key; run `wandb login` or set WANDB_API_KEY, or use"
            " tracking=auto or tracking=offline"
        )
    if mode is not TrackingMode.auto:
        return mode
    try:
        wanted = wandb_settings().mode
    except ConfigError as error:
        _log.warning("%s; this job does not log to W&B", error)
        return TrackingMode.off
    if wanted == "disabled":
        return TrackingMode.off
    try:
        is_online = wanted not in ("offline", "dryrun") and has_key()
    except ConfigError as error:
        _log.warning("%s; logging offline instead", error)
        is_online = False
    return TrackingMode.online if is_online else TrackingMode.offline


def set_up() -> None:
    """Starts wandb's own process. WANDB_SERVICE is removed: it names a process of the parent,
    which may have ended."""
    wandb_settings()
    os.environ.pop("WANDB_SERVICE", None)
    wandb.setup()


def one_line(error: Exception) -> str:
    """An error of wandb in one line."""
    return without_password(" ".join(str(error).split())) or type(error).__name__


def without_password(said: str) -> str:
    """The text without the user and the password of its URLs, `https://user:password@host`."""
    return re.sub(r"//\S*@", "//", said)


def offline_logs(folder: Path) -> list[Path]:
    """The offline logs of a job that have to be uploaded: its newest, or none."""
    logs = folder.glob("wandb/offline-run-*/run-*.wandb")
    return sorted(log for log in logs if not synced_marker(log).exists())


def synced_marker(log: Path) -> Path:
    """The file by which wandb marks an offline log as uploaded."""
    return log.with_name(f"{log.name}.synced")


class WandbTracker(JsonlTracker):
    """metrics.jsonl and one W&B run. A resumed job continues its run, whose id is kept in
    wandb/run_id."""

    def __init__(self, mode: TrackingMode, folder: Path, run: Mapping[str, Any]) -> None:
        """Opens the run.

        Args:
            mode: online or offline.
            folder: the job's folder; wandb makes its own wandb/ in it.
            run: project, entity, group, name, tags and config, as `wandb.init` takes them.
        """
        super().__init__(folder / METRICS)
        self._run: wandb.Run | None = None
        self._last_step = 0
        self._next = 0
        """Number of the next row in metrics.jsonl."""

        def start(**how: Any) -> wandb.Run:
            # Jobs of a sweep may follow one another in one process.
            how |= {"id": run_id, "dir": str(folder), "reinit": "create_new"}
            return wandb.init(**run, **how, settings=_run_settings())

        with self._errors_end_run():
            run_id, earlier = _kept_run_id(folder), offline_logs(folder)
            set_up()
            if mode is TrackingMode.online:
                try:
                    self._run = start(mode="online", resume="allow")
                except (wandb.Error, TimeoutError) as error:
                    _log.warning("W&B is not reached, logging offline instead: %s", one_line(error))
                    wandb.teardown()  # its process holds the id of the run that did not open
                    set_up()
            if self._run is None:
                self._run = start(mode="offline")
            for log in earlier:
                synced_marker(log).touch()
            self._run.define_metric(STEP_FIELD, hidden=True)
            self._run.define_metric("*", step_metric=STEP_FIELD)
            if not self._run.offline:
                _log.info("W&B run: %s", without_password(self._run.url or ""))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the row to both; in W&B with the axis `gr_sweep/step`."""
        super().log(step, metrics)
        self._last_step = step
        with self._errors_end_run():
            self._log_row({STEP_FIELD: step, **finite(metrics)})

    def cut_back(self, step: int) -> None:
        """Replays the rows of metrics.jsonl.

        W&B keeps its own rows after `step`; when the job logs these steps again, they are ignored.
        """
        super().cut_back(step)
        rows = read_rows(self.path)
        self._last_step = rows[-1][STEP] if rows else 0
        self._next = 0
        with self._errors_end_run():
            for row in rows:
                self._log_row({STEP_FIELD: row.pop(STEP), **row})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Adds the removal matrix as a heat map, and the metrics to the run's summary."""
        super().finish(summary)
        with self._errors_end_run():
            if self._run is None:
                return
            if _ERROR in dict(self._run.summary):
                self._run.summary.update({_ERROR: None})  # of an earlier start
            for key in ("command", "fingerprints", "environment"):
                if key in summary:
                    self._run.config[key] = summary[key]
            if (heat_map := _heat_map(summary)) is not None:
                self._log_row({STEP_FIELD: self._last_step, HEAT_MAP: heat_map})
            self._run.summary.update(dict(summary["metrics"]))
            self._end(exit_code=0)

    def fail(self, message: str) -> None:
        """Marks the run as failed, with the reason in its summary."""
        super().fail(message)
        with self._errors_end_run():
            if self._run is not None:
                self._run.summary.update({_ERROR: message})
                self._end(exit_code=1)

    def _log_row(self, row: Mapping[str, Any]) -> None:
        """Logs the next row, which W&B ignores if it has it already."""
        if self._run is not None:
            self._run.log(dict(row), step=self._next, commit=True)
        self._next += 1

    def _end(self, exit_code: int) -> None:
        run, self._run = self._run, None
        assert run is not None
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            _log.warning(
                "W&B has not taken everything within %g s; metrics.jsonl has every row, and"
                " `wandb sync --include-online %s` uploads the rest",
                UPLOAD_TIMEOUT_S,
                Path(run.dir).parent,
            )

    @contextlib.contextmanager
    def _errors_end_run(self) -> Iterator[None]:
        """An error of W&B in the block ends the W&B run, but not the job."""
        try:
            yield
        except (wandb.Error, OSError, ValueError, ConfigError) as error:
            _log.warning("no W&B from here on, metrics.jsonl has every row: %s", one_line(error))
            self._run = None


def _run_settings() -> wandb.Settings:
    return wandb.Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        x_save_requirements=False,
        x_disable_viewer=True,
        # No command line, paths and host; summary.json has those that we want.
        x_disable_meta=True,
        sagemaker_disable=True,  # it would give its own id to every run
        x_transaction_log_flush_interval=1.0,  # seconds until a row of an offline run is on disk
        init_timeout=CONNECT_TIMEOUT_S,
        finish_timeout=UPLOAD_TIMEOUT_S,
        finish_timeout_raises=True,
    )


def _kept_run_id(folder: Path) -> str:
    """The id of a job's run: that of the agent's run, the one kept, or a new one. It is kept.

    The new id is random: a job that is deleted and run again must not continue a finished run.
    """
    kept = read_run_id(folder)
    run_id = agents_run_id() or kept or secrets.token_hex(5)
    if run_id != kept:
        (folder / RUN_ID).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RUN_ID, run_id + "\n")
    return run_id


def _heat_map(summary: Mapping[str, Any]) -> "wandb.Plotly | None":
    """The loss that removal adds, in nats per token: a row for each domain that was removed, a
    column for each domain; None if none was removed."""
    metrics, domains = summary["metrics"], list(summary["domains"])
    rows = {part: [metrics.get(registry.MATRIX(part, d)) for d in domains] for part in domains}
    removed = [part for part in domains if any(value is not None for value in rows[part])]
    if not removed:
        return None
    import plotly.graph_objects as go  # takes a third of a second; needed once, at the end

    heat_map = go.Heatmap(
        x=domains, y=removed, z=[rows[part] for part in removed], texttemplate="%{z:+.3f}",
        colorscale="RdBu_r", zmid=0.0, colorbar={"title": "nats per token"},
    )  # fmt: skip
    figure = go.Figure(heat_map, {"title": "Loss added by removing a domain"})
    figure.update_xaxes(title="evaluated on")
    figure.update_yaxes(title="removed", autorange="reversed")
    return wandb.Plotly(figure)
