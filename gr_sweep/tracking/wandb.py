"""Weights & Biases as a tracker. The one module that imports wandb.

It asks no question and waits for a network no longer than `CONNECT_TIMEOUT_S`: `wandb.init`
always gets an explicit mode, and a server that cannot be reached turns the run into an offline one.
Trouble with W&B is logged and costs a job nothing but its W&B run: metrics.jsonl has every number.

Facts of wandb 0.31 that shape this file: without `mode=` it prompts on a terminal; an offline
resume makes one folder an attempt; `wandb sync` renumbers W&B's own steps, so a row has its own.
"""

import logging
import netrc
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from wandb.sdk import wandb_setup

from gr_sweep.config import TrackingMode
from gr_sweep.errors import ConfigError
from gr_sweep.files import write_whole
from gr_sweep.metrics import keys

CONNECT_TIMEOUT_S = 10.0
"""How long a job waits for a W&B server before it goes offline."""

UPLOAD_TIMEOUT_S = 120.0
"""How long a job waits at its end for its upload; the rest stays on disk, for `wandb sync`."""

STEP_FIELD = "gr_sweep/step"
"""Field of each row that holds the optimizer steps done; the x axis of every metric."""

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
        run_id = _kept_run_id(folder / "wandb" / "run_id")

        def start(
            wandb_mode: Literal["online", "offline"], resume: Literal["allow"] | None
        ) -> wandb.Run:
            settings = wandb.Settings(
                console="off",
                disable_git=True,
                disable_code=True,
                x_save_requirements=False,
                x_disable_viewer=True,
                init_timeout=CONNECT_TIMEOUT_S,
                finish_timeout=UPLOAD_TIMEOUT_S,
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
            _set_up()
            if mode is TrackingMode.online:
                try:
                    self._run = start("online", "allow")
                except (wandb.Error, TimeoutError) as error:
                    _log.warning(
                        "W&B cannot be used online, logging offline instead: %s", _line(error)
                    )
                    # wandb's process holds on to the id of the run that it could not open.
                    wandb.teardown()
                    _set_up()
            if self._run is None:
                self._run = start("offline", None)
            self._run.define_metric(STEP_FIELD, hidden=True)
            self._run.define_metric("*", step_metric=STEP_FIELD)
            if self._run.url is not None:
                _log.info("W&B run: %s", self._run.url)
        except (wandb.Error, OSError, ValueError, ConfigError) as error:
            self._give_up(error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row on the axis `gr_sweep/step`."""
        if self._run is None:
            return
        self._last_step = step
        try:
            self._run.log({STEP_FIELD: step, **metrics})
        except (wandb.Error, OSError) as error:
            self._give_up(error)

    def cut_back(self, step: int) -> None:
        """W&B's history cannot be cut: rows that are logged again appear twice at their step."""

    def sync(self) -> None:
        """Writing is wandb's own process's business."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Adds the removal matrix as table and heat map, and the metrics to the run's summary."""
        if self._run is None:
            return
        try:
            for key in ("command", "fingerprints", "environment"):
                if key in summary:
                    self._run.config[key] = summary[key]
            matrix = removal_matrix(summary)
            if matrix is not None:
                self._run.log(
                    {
                        STEP_FIELD: self._last_step,
                        "separability/matrix": _table(*matrix),
                        "separability/heat_map": wandb.Plotly(_heat_map(*matrix)),
                    }
                )
            self._run.summary.update(dict(summary["metrics"]))
            self._run.finish(exit_code=0)
        except (wandb.Error, OSError) as error:
            self._give_up(error)
        self._run = None

    def fail(self, message: str) -> None:
        """Marks the run as failed, with the reason in its summary."""
        if self._run is None:
            return
        try:
            self._run.summary.update({"gr_sweep/error": message})
            self._run.finish(exit_code=1)
        except (wandb.Error, OSError) as error:
            self._give_up(error)
        self._run = None

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
        removed: [metrics.get(keys.matrix(removed, domain)) for domain in domains]
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
    try:
        return wandb_setup.singleton().settings
    except (wandb.Error, ValueError) as error:  # pydantic's errors are ValueErrors
        raise ConfigError(
            f"W&B cannot be used: {_line(error)}; mend the WANDB_ variables or use tracking=off"
        ) from error


def _set_up() -> None:
    """Starts wandb's own process.

    WANDB_SERVICE names the process of whoever started this one; it may be on another machine, or
    gone, so a job has its own.
    """
    os.environ.pop("WANDB_SERVICE", None)
    _settings()
    wandb.setup()


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
