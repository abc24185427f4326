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
    has_key,
    one_line,
    set_up,
    synced_marker,
    wandb_settings,
    without_password,
)

API_TIMEOUT_S = 20
"""Timeout of a request to the server."""

SYNC_TIMEOUT_S = 300.0
"""Timeout of `wandb sync`."""

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
    if not has_key():
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
        server = without_password(wandb_settings().base_url)
        raise JobError(f"W&B at {server} cannot be used: {one_line(error)}") from error


def upload(log: Path) -> str:
    """Uploads an offline log, one of `offline_logs`, by `wandb sync`, which marks it.

    Returns:
        What went wrong; empty if nothing.
    """
    words = [sys.executable, "-m", "wandb", "sync", "--yes", str(log.resolve())]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WANDB_") or name in _LOGIN
    }
    with tempfile.TemporaryDirectory() as folder:  # where wandb puts its own logs
        environment |= {"WANDB_BASE_URL": wandb_settings().base_url, "WANDB_DIR": folder}
        try:
            said = subprocess.run(
                words, cwd=folder, env=environment, timeout=SYNC_TIMEOUT_S, text=True,
                errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ).stdout  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return one_line(error)
    lines = said.splitlines()
    errors = [line for line in lines if " ERROR " in line]
    if errors:
        synced_marker(log).unlink(missing_ok=True)
    elif not synced_marker(log).exists():
        errors = lines[-1:] or ["wandb sync said nothing"]
    return without_password("; ".join(errors))


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
