"""The W&B server as `gr-sweep dashboard` uses it: uploads, runs, and what is added to them later.

Written for wandb 0.31, where `wandb sync` exits with status 0 even after an error, and the public
API retries requests for days by default.
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
from gr_sweep.tracking.wandb import (
    key_source,
    one_line,
    set_up,
    synced_marker,
    wandb_settings,
    without_secrets,
)

API_TIMEOUT_S = 20
"""Timeout of a request to the server."""

SYNC_TIMEOUT_S = 300.0
"""Timeout of `wandb sync`, for each log."""

_LOGIN = (
    *("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
    *("WANDB_CREDENTIALS_FILE", "WANDB_CONFIG_DIR"),
)
"""WANDB_ variables that `wandb sync` gets. Others, such as WANDB_PROJECT, would redirect it."""


def connect() -> wandb.Api:
    """The public API of the configured server, logged in.

    Raises:
        ConfigError: no key is configured, or a WANDB_ variable is invalid.
        JobError: the server cannot be reached or rejects the key.
    """
    if key_source() is None:
        raise ConfigError("no W&B key is configured; run `wandb login` or set WANDB_API_KEY")
    set_up()
    settings = wandb_settings()
    settings.x_graphql_retry_max = 3
    settings.x_graphql_retry_wait_max_seconds = 2.0
    settings.x_graphql_timeout_seconds = API_TIMEOUT_S / 2
    with request_errors():
        return wandb.Api(timeout=API_TIMEOUT_S)


@contextlib.contextmanager
def request_errors() -> Iterator[None]:
    """Turns errors of wandb into a `JobError` of one line that names the server.

    Raises:
        JobError: an error was raised inside.
    """
    try:
        yield
    except (
        *(wandb.Error, WandbApiFailedError, OSError, ValueError),
        *(LookupError, TypeError, AttributeError),  # of the library, for an unexpected answer
    ) as error:
        raise JobError(f"W&B at {server_url()} cannot be used: {one_line(error)}") from error


def server_url() -> str:
    """The server's address, without secrets."""
    return without_secrets(wandb_settings().base_url).rstrip("/")


def upload(logs: Sequence[Path]) -> dict[Path, str | None]:
    """Uploads offline logs by `wandb sync`, which marks those that are complete.

    Args:
        logs: from `offline_logs`.

    Returns:
        For each log None, or why it was not uploaded completely.

    Raises:
        JobError: the upload took too long.
    """
    words = [sys.executable, "-m", "wandb", "sync", "--yes", *(str(log.resolve()) for log in logs)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WANDB_") or name in _LOGIN
    }
    environment["WANDB_BASE_URL"] = wandb_settings().base_url
    with tempfile.TemporaryDirectory() as folder:  # where wandb puts its own logs
        environment["WANDB_DIR"] = folder
        try:
            done = subprocess.run(
                words, cwd=folder, env=environment, timeout=SYNC_TIMEOUT_S * len(logs), text=True,
                errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise JobError(f"W&B at {server_url()} did not take the upload: {error}") from error
    lines = done.stdout.strip().splitlines()
    return {log: _reason(log, lines) for log in logs}


def _reason(log: Path, lines: Sequence[str]) -> str | None:
    """Why a log was not uploaded, from the output of `wandb sync`; None if it was.

    Of a log that a kill has torn everything is uploaded that can be. Afterwards the log has its
    marker if there is nothing more to upload.
    """
    marker = synced_marker(log)
    errors = [line for line in lines if " ERROR " in line and log.name.rpartition("-")[2] in line]
    if any("incomplete record" in line or "Failed to read" in line for line in errors):
        marker.touch()
        return None
    if not errors and marker.exists():
        return None
    marker.unlink(missing_ok=True)
    return without_secrets(" ".join(errors[:1] or lines[-1:]) or "`wandb sync` gives no reason")


def runs(api: wandb.Api, place: str, ids: Sequence[str]) -> dict[str, Any]:
    """Those of the given runs that exist in a project (`entity/name`), by id."""
    with tempfile.TemporaryDirectory() as folder, request_errors():
        os.environ["WANDB_DIR"] = folder  # the library makes a folder for each run
        try:
            only = {"name": {"$in": list(ids)}}
            found = api.runs(place, filters=only, per_page=100, lazy=False)
            return {run.id: run for run in found}
        finally:
            del os.environ["WANDB_DIR"]


def add(run: Any, metrics: Mapping[str, float], config: Mapping[str, Any]) -> int:
    """Updates a finished run's summary and config with values that were computed later.

    Returns:
        How many values were changed.
    """
    with request_errors():
        own = dict(run.summary_metrics)
        changed = {key: value for key, value in metrics.items() if own.get(key) != value}
        new_config = {k: value for k, value in config.items() if run.config.get(k) != value}
        for key, value in changed.items():
            run.summary[key] = value
        run.config.update(new_config)
        if new_config or changed:
            run.update()  # also sends the summary
    return len(changed) + len(new_config)
