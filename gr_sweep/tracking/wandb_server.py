"""A W&B server as `gr-sweep dashboard` uses it: uploads, runs, and what is added to them later.

Written for wandb 0.31, where `wandb sync` ends with status 0 whatever went wrong, and questions of
the public API are repeated for days by default.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from gr_sweep.errors import ConfigError, JobError
from gr_sweep.metrics import registry
from gr_sweep.tracking.wandb import (
    key_source,
    one_line,
    set_up,
    synced_marker,
    wandb_settings,
    without_secrets,
)

API_TIMEOUT_S = 20
"""How long a question to a server may take."""

SYNC_START_S = 120.0
SYNC_BYTES_PER_S = 20_000
"""`wandb sync` may take this long, plus the time for its bytes at this speed."""

_CREDENTIALS = ("WANDB_CONFIG_DIR", "WANDB_CREDENTIALS_FILE", "WANDB_IDENTITY_TOKEN_FILE")
"""Variables that `wandb sync` gets; others of the shell, such as WANDB_PROJECT, would redirect it.
"""


class Server:
    """The W&B server that the settings name, logged in. It is waited for only so long; what goes
    wrong is a `JobError`."""

    def __init__(self) -> None:
        """
        Raises:
            ConfigError: no key is configured, or a WANDB_ variable is invalid.
            JobError: the server is away or refuses the key.
        """
        if key_source() is None:
            raise ConfigError("no W&B key is configured; run `wandb login` or set WANDB_API_KEY")
        set_up()
        self._settings = wandb_settings()
        self._settings.x_graphql_retry_max = 3
        self._settings.x_graphql_retry_wait_max_seconds = 2.0
        self._settings.x_graphql_timeout_seconds = API_TIMEOUT_S / 2
        self.url = without_secrets(self._settings.base_url).rstrip("/")
        with self.asking():
            self.api = wandb.Api(timeout=API_TIMEOUT_S)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Makes an error inside one line about the server.

        Raises:
            JobError: something inside went wrong.
        """
        try:
            yield
        except (
            *(wandb.Error, WandbApiFailedError, OSError, ValueError),
            *(LookupError, TypeError, AttributeError),  # the library got an unexpected answer
        ) as error:
            raise JobError(f"W&B at {self.url} cannot be used: {one_line(error)}") from error

    @property
    def default_entity(self) -> str:
        """The entity of runs that name none."""
        with self.asking():
            return str(self.api.default_entity)

    def upload(
        self, logs: Sequence[Path], *, entity: str | None, project: str | None
    ) -> dict[Path, str]:
        """Uploads offline logs by `wandb sync`, which marks those that are complete.

        Args:
            logs: from `offline_logs`.
            entity, project: instead of those in the logs.

        Returns:
            Why a log was not uploaded whole; nothing for the others.

        Raises:
            JobError: the upload took too long.
        """
        size = sum(path.stat().st_size for log in logs for path in log.rglob("*") if path.is_file())
        limit_s = SYNC_START_S + size / SYNC_BYTES_PER_S
        words = [sys.executable, "-m", "wandb", "sync", "--yes"]
        words += ["--entity", entity] if entity else []
        words += ["--project", project] if project else []
        with tempfile.TemporaryDirectory() as folder:  # where wandb puts its own logs
            try:
                done = subprocess.run(
                    [*words, *(str(log.resolve()) for log in logs)],
                    cwd=folder,
                    env=self._environment() | {"WANDB_DIR": folder},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=limit_s,
                )
            except subprocess.TimeoutExpired as error:
                raise JobError(
                    f"W&B at {self.url} did not take the upload within {limit_s:.0f} s"
                ) from error
        lines = done.stdout.strip().splitlines()
        reasons = ((log, _reason(log, lines)) for log in logs)
        return {log: reason for log, reason in reasons if reason is not None}

    def _environment(self) -> dict[str, str]:
        """What `wandb sync` runs with: the login of this process, no other WANDB_ variable."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("WANDB_") or name in _CREDENTIALS
        }
        environment["WANDB_BASE_URL"] = self._settings.base_url
        if self._settings.api_key:
            environment["WANDB_API_KEY"] = self._settings.api_key
        return environment

    def runs(self, entity: str, project: str, ids: Sequence[str]) -> dict[str, Any]:
        """The runs of a project (`wandb.apis.public.Run`) by id: those of `ids` that are there."""
        with tempfile.TemporaryDirectory() as folder, self.asking():
            os.environ["WANDB_DIR"] = folder  # the library makes a folder for each run
            try:
                found = self.api.runs(
                    f"{entity}/{project}",
                    filters={"name": {"$in": list(ids)}},
                    per_page=100,
                    lazy=False,
                )
                return {run.id: run for run in found}
            finally:
                del os.environ["WANDB_DIR"]

    def add(self, run: Any, metrics: Mapping[str, float], config: Mapping[str, Any]) -> int:
        """Adds what is known only after a run's end to its summary and its config.

        Metrics in the summary that need a baseline and are not in `metrics` are deleted: a run
        does not log these itself, so they were added earlier, from a baseline that is gone.

        Returns:
            How many values were changed.
        """
        with self.asking():
            own = dict(run.summary_metrics)
            stale = [key for key in own if key not in metrics and _needs_baseline(key)]
            changed = {key: value for key, value in metrics.items() if own.get(key) != value}
            new_config = {k: value for k, value in config.items() if run.config.get(k) != value}
            for key in stale:
                del run.summary[key]
            for key, value in changed.items():
                run.summary[key] = value
            if new_config:
                run.config.update(new_config)
                run.update()  # sends the summary, too
            elif stale or changed:
                run.summary.update()
        return len(stale) + len(changed) + len(new_config)


def _reason(log: Path, lines: Sequence[str]) -> str | None:
    """Why `wandb sync`, which printed these lines, did not upload a log whole; None: it did.

    The marker then says whether another try makes sense.
    """
    marker = synced_marker(log)
    run_id = log.name.rpartition("-")[2]
    errors = [line.partition(" ERROR ")[2] for line in lines if " ERROR " in line]
    reason = next((error for error in errors if run_id in error), None)
    if reason is None and marker.exists():
        return None
    if reason and ("incomplete record" in reason or "Failed to read" in reason):
        marker.touch()  # torn by a kill: nothing more can be uploaded
    else:
        marker.unlink(missing_ok=True)
    reason = reason or (lines[-1] if lines else "`wandb sync` gives no reason")
    return without_secrets(reason)


def _needs_baseline(key: str) -> bool:
    found = registry.find(key)
    return found is not None and bool(found[0].baselines)
