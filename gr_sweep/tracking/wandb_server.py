"""The W&B server as `gr-sweep dashboard` uses it: uploads, runs, and what is added to them later.

Written for wandb 0.31, where `wandb sync` exits with status 0 even after an error, and the public
API retries requests for days by default.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from gr_sweep.errors import ConfigError, JobError
from gr_sweep.jobdir import METRICS, SUMMARY, read_finished
from gr_sweep.tracking.jsonl import finite, read_rows
from gr_sweep.tracking.wandb import (
    key_source,
    one_line,
    run_id_of,
    set_up,
    synced_marker,
    wandb_settings,
    without_secrets,
)

API_TIMEOUT_S = 20
"""Timeout of a request to the server."""

SYNC_TIMEOUT_S = 300.0
"""Timeout of `wandb sync`."""

SETTLE_S = 30.0
"""How long a server may take to process what it was sent."""

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


def upload(api: wandb.Api, log: Path, job: Path) -> str:
    """Uploads an offline log by `wandb sync`, and marks it if the server then has everything.

    Args:
        log: from `offline_logs`.
        job: the folder of its job.

    Returns:
        What the server lacks of metrics.jsonl and summary.json; empty if nothing.

    Raises:
        JobError: the server cannot be used, or the upload took too long.
    """
    said, run_id = _sync(log), run_id_of(log)
    # It says where the run is: `.../entity/project/runs/id`.
    found = re.search(rf"([^/\s]+/[^/\s]+)/runs/{run_id}\b", said)
    error = next((line for line in said.splitlines() if " ERROR " in line), "")
    deadline = time.monotonic() + SETTLE_S
    while True:
        on_server = runs(api, urllib.parse.unquote(found[1]), [run_id]) if found else {}
        lack = _lacking(on_server.get(run_id), job)
        if not lack or error or not found or time.monotonic() > deadline:
            break
        time.sleep(SETTLE_S / 10)
    synced_marker(log).unlink(missing_ok=True) if lack else synced_marker(log).touch()
    return "; ".join(filter(None, (lack, without_secrets(error)))) if lack else ""


def _sync(log: Path) -> str:
    """What `wandb sync` says."""
    words = [sys.executable, "-m", "wandb", "sync", "--yes", str(log.resolve())]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WANDB_") or name in _LOGIN
    }
    environment["WANDB_BASE_URL"] = wandb_settings().base_url
    with tempfile.TemporaryDirectory() as folder:  # where wandb puts its own logs
        environment["WANDB_DIR"] = folder
        try:
            return subprocess.run(
                words, cwd=folder, env=environment, timeout=SYNC_TIMEOUT_S, text=True,
                errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ).stdout  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise JobError(f"W&B at {server_url()} did not take the upload: {error}") from error


def _lacking(run: Any, job: Path) -> str:
    """What a run (None: there is none) lacks of the files of its job; empty if nothing."""
    num_rows, summary = len(read_rows(job / METRICS)), read_finished(job) or {}
    on_server = 0 if run is None else run.historyLineCount or 0
    own = {} if run is None else dict(run.summary_metrics)
    metrics = finite(summary.get("metrics", {}))
    missing = [key for key, value in metrics.items() if own.get(key) != value]
    parts = []
    if run is None or on_server < num_rows:
        parts.append(f"{num_rows - on_server} of {num_rows} rows of {METRICS}")
    if missing:
        names = ", ".join(missing[:2]) + ", ..." * (len(missing) > 2)
        parts.append(f"{len(missing)} of {len(metrics)} metrics of {SUMMARY} ({names})")
    return "W&B lacks " + " and ".join(parts) if parts else ""


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
