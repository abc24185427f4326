"""Weights & Biases as a tracker. The one module of a job that imports wandb; the verbs `sync` and
`dashboard` do in `wandb_api.py` and `wandb_views.py`.

It asks no question and waits for a network no longer than `CONNECT_TIMEOUT_S`: `wandb.init`
always gets an explicit mode, and a server that cannot be reached turns the run into an offline one.
Trouble with W&B is logged and costs a job nothing but its W&B run: metrics.jsonl has every number.

W&B's history holds the rows of metrics.jsonl, each once, in their order: a row's number in the file
is its step in W&B, and the removal matrix comes after the last. A resumed job finds out how many
rows W&B has; it replays those that are missing and passes over those that are there, which it logs
again with the same numbers.

Facts of wandb 0.31 that shape this file: without `mode=` it prompts on a terminal; an offline
resume makes one folder an attempt; a row of a step is sent when another comes, or with `commit`;
what it says goes to a logger of ours only where it is silent.
"""

import contextlib
import logging
import netrc
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
from wandb.sdk import wandb_setup

from gr_sweep.config import TrackingMode
from gr_sweep.errors import ConfigError
from gr_sweep.files import write_whole
from gr_sweep.jobdir import METRICS
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP, MATRIX_TABLE, STEP, STEP_FIELD
from gr_sweep.tracking.jsonl import finite, read_rows
from gr_sweep.tracking.wandb_file import read_payloads

CONNECT_TIMEOUT_S = 10.0
"""How long a job waits for a W&B server before it goes offline."""

UPLOAD_TIMEOUT_S = 60.0
"""How long a job waits at its end for its upload; the rest stays on disk, for `gr-sweep sync`.
"""

REQUEST_TIMEOUT_S = 30.0
"""How long a request may take before wandb asks again."""

_RETRY_WAIT_S = 10.0
"""At most so long wandb waits before it asks again; a server that comes back is soon found."""

_RETRIES = 1_000_000
"""A server may be away for days: wandb's own limit ends the upload of a run for good. What ends the
waiting is UPLOAD_TIMEOUT_S."""

_FLUSH_S = 1.0
"""Seconds until a row is on disk; a kill of wandb's process loses what is not, and the resume has
to replay it."""

_MAX_TAG_LENGTH = 64
"""W&B refuses longer tags."""

_log = logging.getLogger(__name__)


def key_source() -> str | None:
    """Where wandb would find an API key, or None. Reads the environment and files, no network."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    settings = _settings()
    for path in _netrc_files():
        try:
            found = netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc)
        except (OSError, netrc.NetrcParseError) as error:
            _log.debug("%s cannot be read: %s", path, error)
            continue
        if found and found[2]:
            return str(path)
    return "W&B settings" if settings.api_key else None


def resolve_mode(mode: TrackingMode) -> TrackingMode:
    """What `mode` comes to on this machine: online, offline or off. No network.

    `auto` follows WANDB_MODE and `wandb offline` where one of them says offline or disabled, and is
    online where a key is configured.

    Raises:
        ConfigError: mode is online and no API key is configured.
    """
    if mode is TrackingMode.online and key_source() is None:
        raise ConfigError(
            "tracking=online finds no W&B key; run `wandb login` or set WANDB_API_KEY, or use"
            " tracking=auto or tracking=offline"
        )
    if mode is not TrackingMode.auto:
        return mode
    try:
        wanted, has_key = _settings().mode, key_source() is not None
    except ConfigError as error:
        _log.warning("%s; this run is not tracked there", error)
        return TrackingMode.off
    if wanted == "disabled":
        return TrackingMode.off
    if wanted in ("offline", "dryrun"):
        return TrackingMode.offline
    return TrackingMode.online if has_key else TrackingMode.offline


class WandbTracker:
    """One W&B run. A resumed job goes on in the same run: its id is kept in wandb/run_id."""

    def __init__(
        self,
        mode: TrackingMode,
        *,
        project: str,
        entity: str | None,
        group: str,
        name: str,
        tags: Sequence[str],
        folder: Path,
        run_config: Mapping[str, Any],
    ) -> None:
        """Opens the run.

        Args:
            mode: online or offline.
            project: W&B project.
            entity: W&B user or team; None: the account's default.
            group: W&B group.
            name: W&B name of the run.
            tags: doubles are dropped, long ones cut.
            folder: the job's folder; wandb makes its own wandb/ in it.
            run_config: plain nested dict.
        """
        self._last_step = 0
        self._run: wandb.Run | None = None
        self._rows_path = folder / METRICS
        self._next = _num_lines(self._rows_path)
        self._has = 0
        run_id = _kept_run_id(folder / "wandb" / "run_id")
        # What earlier attempts left.
        earlier = list(folder.glob(f"wandb/*run-*/run-{run_id}.wandb"))

        def start(
            wandb_mode: Literal["online", "offline"], resume: Literal["allow"] | None
        ) -> wandb.Run:
            settings = wandb.Settings(
                console="off",
                disable_git=True,
                disable_code=True,
                x_save_requirements=False,
                x_disable_viewer=True,
                # Command line, paths, host: the summary has what is wanted of them.
                x_disable_meta=True,
                x_transaction_log_flush_interval=_FLUSH_S,
                x_graphql_retry_max=_RETRIES,
                x_graphql_retry_wait_max_seconds=_RETRY_WAIT_S,
                x_graphql_timeout_seconds=REQUEST_TIMEOUT_S,
                x_file_stream_retry_max=_RETRIES,
                x_file_stream_retry_wait_max_seconds=_RETRY_WAIT_S,
                x_file_stream_timeout_seconds=REQUEST_TIMEOUT_S,
                x_file_transfer_retry_max=_RETRIES,
                x_file_transfer_retry_wait_max_seconds=_RETRY_WAIT_S,
                x_file_transfer_timeout_seconds=REQUEST_TIMEOUT_S,
                init_timeout=CONNECT_TIMEOUT_S,
                finish_timeout=UPLOAD_TIMEOUT_S,
                finish_timeout_raises=True,
            )
            return wandb.init(
                mode=wandb_mode,
                id=run_id,
                resume=resume,
                # Jobs of a sweep may follow one another in one process, beside runs of the caller.
                reinit="create_new",
                project=project,
                entity=entity,
                group=group,
                name=name,
                tags=list(dict.fromkeys(tag[:_MAX_TAG_LENGTH] for tag in tags)),
                dir=str(folder),
                config=dict(run_config),
                settings=settings,
            )

        try:
            set_up()
            if mode is TrackingMode.online:
                try:
                    self._run = start("online", "allow")
                except (wandb.Error, TimeoutError) as error:
                    _log.warning(
                        "W&B cannot be used online, logging offline instead: %s", _line(error)
                    )
                    # wandb's process holds on to the id of the run that it could not open.
                    wandb.teardown()
                    set_up()
            if self._run is not None:
                # One more than the step of the server's last row.
                self._has = self._run.starting_step
                for path in earlier:
                    # W&B gets their rows here, if it has not; `wandb sync` would double them.
                    if path.parent.name.startswith("offline-"):
                        path.with_name(path.name + ".synced").touch()
            else:
                self._run = start("offline", None)
                self._has = max((_num_rows(path) for path in earlier), default=0)
            self._run.define_metric(STEP_FIELD, hidden=True)
            self._run.define_metric("*", step_metric=STEP_FIELD)
            if not self._run.offline:
                _log.info("W&B run: %s", self._run.url)
        except (wandb.Error, OSError, ValueError, ConfigError) as error:
            self._give_up(error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row on the axis `gr_sweep/step`, as it is in metrics.jsonl."""
        self._last_step = step
        with self._giving_up():
            self._put({STEP_FIELD: step, **finite(metrics)})

    def cut_back(self, step: int) -> None:
        """W&B's history cannot be cut: its rows after `step` stay, and those that the job will log
        in their place are passed over. Rows of metrics.jsonl that W&B has not are replayed."""
        rows = read_rows(self._rows_path)
        if rows:
            self._last_step = int(rows[-1][STEP])
        self._next = 0
        with self._giving_up():
            for row in rows:
                self._put({STEP_FIELD: row.pop(STEP), **row})

    def sync(self) -> None:
        """Writing is wandb's own process's business."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Adds the removal matrix as table and heat map, and the metrics to the run's summary."""
        with self._giving_up():
            if self._run is None:
                return
            if "gr_sweep/error" in dict(self._run.summary):
                self._run.summary.update({"gr_sweep/error": None})  # of an earlier attempt
            for key in ("command", "fingerprints", "environment"):
                if key in summary:
                    self._run.config[key] = summary[key]
            matrix = removal_matrix(summary)
            if matrix is not None:
                table = _table(*matrix)
                # Or else wandb makes an artifact of it, for which it asks the server and waits
                # without end.
                table.bind_to_run(self._run, MATRIX_TABLE, self._next)  # type: ignore[no-untyped-call]
                shown = {MATRIX_TABLE: table, HEAT_MAP: wandb.Plotly(_heat_map(*matrix))}
                if not self._put({STEP_FIELD: self._last_step, **shown}):
                    # Its row is there, but the files may have been lost with the kill.
                    self._run.summary.update(shown)
            self._run.summary.update(dict(summary["metrics"]))
            self._close(exit_code=0)

    def fail(self, message: str) -> None:
        """Marks the run as failed, with the reason in its summary."""
        with self._giving_up():
            if self._run is None:
                return
            self._run.summary.update({"gr_sweep/error": message})
            self._close(exit_code=1)

    def _put(self, row: Mapping[str, Any]) -> bool:
        """Logs the next row unless W&B has it; whether it was logged."""
        number, self._next = self._next, self._next + 1
        if self._run is None or number < self._has:
            return False
        self._run.log(dict(row), step=number, commit=True)
        return True

    def _close(self, exit_code: int) -> None:
        run, self._run = self._run, None
        assert run is not None
        try:
            with _said.held():
                run.finish(exit_code=exit_code)
        except TimeoutError:
            _log.warning(
                "W&B has not taken everything within %g s; the rest is in %s, metrics.jsonl has"
                " every row",
                UPLOAD_TIMEOUT_S,
                Path(run.dir).parent,
            )

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Trouble inside ends the W&B run, not the job."""
        try:
            yield
        except (wandb.Error, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        _log.warning("no W&B from here on, metrics.jsonl has every row: %s", _line(error))
        self._run = None


def removal_matrix(
    summary: Mapping[str, Any],
) -> tuple[list[str], list[str], list[list[float | None]]] | None:
    """Removed domains, evaluated domains, and the loss that removal adds, in nats a token.

    A row for each domain that has one, a column for each domain; None where there is no matrix.
    """
    metrics, domains = summary["metrics"], list(summary["domains"])
    lines = {
        removed: [metrics.get(registry.MATRIX(removed, domain)) for domain in domains]
        for removed in domains
    }
    rows = [removed for removed in domains if any(v is not None for v in lines[removed])]
    return (rows, domains, [lines[removed] for removed in rows]) if rows else None


def _table(rows: list[str], columns: list[str], values: list[list[float | None]]) -> wandb.Table:
    data: list[Iterable[Any]] = [[row, *line] for row, line in zip(rows, values, strict=True)]
    return wandb.Table(columns=["removed", *columns], data=data)


def _heat_map(rows: list[str], columns: list[str], values: list[list[float | None]]) -> Any:
    # plotly takes a third of a second to import; a job needs it once, at its end.
    import plotly.graph_objects as go

    text = [["" if v is None else f"{v:+.3f}" for v in line] for line in values]
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=rows,
            z=values,
            text=text,
            texttemplate="%{text}",
            colorscale="RdBu_r",
            zmid=0.0,
            colorbar={"title": "nats a token"},
        )
    )
    figure.update_layout(
        title="Loss added by removing a domain",
        xaxis_title="evaluated on",
        yaxis={"title": "removed", "autorange": "reversed"},
    )
    return figure


def _settings() -> wandb.Settings:
    """W&B's settings from the environment and its files. Unlike wandb.setup() starts no process.

    Raises:
        ConfigError: a WANDB_ variable that W&B refuses.

    Its messages are silenced unless the user has said otherwise, which wandb reads just here.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    # Reports of wandb about itself; for a server that is away a process waits with them at its end.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        return wandb_setup.singleton().settings
    except (wandb.Error, ValueError) as error:  # pydantic's errors are ValueErrors
        raise ConfigError(
            f"W&B cannot be used: {_line(error)}; mend the WANDB_ variables or use tracking=off"
        ) from error


def set_up() -> None:
    """Starts wandb's own process, silent but for the log.

    WANDB_SERVICE names the process of whoever started this one; it may be on another machine, or
    gone, so a job has its own.
    """
    os.environ.pop("WANDB_SERVICE", None)
    _settings()
    settings = wandb.setup().settings
    wandb.termsetup(settings, _said)


class _Said:
    """Where wandb's messages go in place of the terminal."""

    def __init__(self) -> None:
        self._held: list[str] | None = None

    def info(self, message: str) -> None:
        _log.debug("%s", message)

    def warning(self, message: str) -> None:
        if self._held is None:
            _log.warning("%s", " ".join(message.split()))
        else:
            self._held.append(message)

    error = warning

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps back what is said inside; lost where an error is raised, which has its own line."""
        held: list[str] = []
        self._held = held
        try:
            yield
        finally:
            self._held = None
        for message in held:
            self.warning(message)


_said = _Said()


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _num_rows(path: Path) -> int:
    """How many rows W&B has once this file and those of the attempts before it are uploaded.

    A file that a kill tore has the rows before the tear.
    """
    count = 0
    for record, _ in read_records(path):
        if record.WhichOneof("record_type") == "history":
            count = record.history.step.num + 1
    return count


def read_records(path: Path) -> Iterator[tuple[Record, bytes]]:
    """The records of a run-ID.wandb, each beside its bytes, up to where a kill tore the file."""
    for payload in read_payloads(path):
        record = Record()
        try:
            record.ParseFromString(payload)
        except DecodeError:
            return
        yield record, payload


def _line(error: Exception) -> str:
    """wandb's messages run over several lines; a log line is one."""
    return " ".join(str(error).split())


def _netrc_files() -> list[Path]:
    """The files that wandb reads, in its order; the first that exists counts."""
    if named := os.environ.get("NETRC"):
        return [Path(named).expanduser()]
    home = Path.home()
    return [path for path in (home / ".netrc", home / "_netrc") if path.exists()][:1]


def _kept_run_id(path: Path) -> str:
    """The id in `path`, or a new one that is kept there.

    New rather than derived from the settings: a job that is deleted and run again, or run in two
    sweep folders, must not continue a run that is finished.
    """
    if path.exists() and (kept := path.read_text(encoding="utf-8").strip()):
        return kept
    run_id = secrets.token_hex(5)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, run_id + "\n")
    return run_id
