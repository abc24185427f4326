"""A W&B server, as the verbs `sync` and `dashboard` ask it: about runs, and with what is added to
them after their end.

Nothing waits for a server longer than `TIMEOUT_S` a question. What logs a job is
`tracking/wandb.py`.

Facts of wandb 0.31 that shape this file: `wandb.Api()` prompts where no key is configured, and
logs in when it is made; its answers fail as errors of several libraries.
"""

import contextlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
from wandb import env as wandb_env
from wandb.sdk import wandb_setup
from wandb.sdk.lib.service.service_connection import WandbApiFailedError, WandbAttachFailedError
from wandb.sdk.lib.service.service_token import WandbServiceConnectionError

from gr_sweep.config import is_number
from gr_sweep.errors import ConfigError, JobError
from gr_sweep.tracking.wandb import key_source, set_up

TIMEOUT_S = 20
"""How long a question to a server may take, with all that is asked again."""

RETRIES = 3
RETRY_WAIT_S = 2.0
REQUEST_TIMEOUT_S = 10.0

_MOST_RUNS = 100
"""Asked for by name at once."""

_MOST_ROWS = 1000
"""Asked for at once."""

_SETTINGS = "W&B settings"
"""What `key_source` says of a key in a settings file."""

_ROWS = """
    query HistoryPage(
        $entity: String!, $project: String!, $name: String!,
        $first: Int64!, $end: Int64!, $most: Int!
    ) {
        project(name: $project, entityName: $entity) {
            run(name: $name) { history(minStep: $first, maxStep: $end, samples: $most) }
        }
    }
"""


@dataclass(frozen=True)
class ServerRun:
    """A run as the server has it."""

    id: str
    group: str | None
    is_running: bool
    has_ended: bool
    """It said so itself: neither running nor lost."""
    num_rows: int
    """Of its history."""
    last_step: int | None
    """The greatest number of a row; None: the server does not say."""
    config: Mapping[str, Any]
    """Nested, as it was logged."""
    summary: Mapping[str, Any]
    history_keys: frozenset[str]
    handle: Any
    """What the public API knows it by."""

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of its summary."""
        return {key: value for key, value in self.summary.items() if is_number(value)}


class Server:
    """The server that W&B's settings name, logged in."""

    def __init__(self) -> None:
        """
        Raises:
            ConfigError: no key is configured, or W&B's settings cannot be.
            JobError: the server is away, or refuses the key, or wandb's own process does not
                start.
        """
        try:
            set_up()
        except (
            wandb.Error,
            WandbAttachFailedError,
            WandbServiceConnectionError,
            OSError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise JobError(f"W&B's own process does not start: {reason}") from error
        source = key_source()
        if source is None:
            raise ConfigError("no W&B key is configured; run `wandb login` or set WANDB_API_KEY")
        settings = wandb_setup.singleton().settings
        base_url = os.environ.get("WANDB_BASE_URL", settings.base_url)
        self.url = plain_url(base_url)
        """For people: without a password."""
        self.environment = {"WANDB_BASE_URL": base_url}
        """What leads a process there that runs in another folder, without ./wandb/settings."""
        if source == _SETTINGS and settings.api_key:
            self.environment["WANDB_API_KEY"] = settings.api_key
        # wandb.Api() takes them from here; it would ask for days.
        settings.x_graphql_retry_max = RETRIES
        settings.x_graphql_retry_wait_max_seconds = RETRY_WAIT_S
        settings.x_graphql_timeout_seconds = REQUEST_TIMEOUT_S
        with asking(self.url):
            self.api = wandb.Api(timeout=TIMEOUT_S)
        self._users: set[Path] = set()
        self._seen: set[Path] = set()
        self._lock = threading.Lock()

    def check(self) -> None:
        """
        Raises:
            JobError: the server is away, or refuses.
        """
        with asking(self.url):
            wandb.Api(timeout=TIMEOUT_S)

    @property
    def default_entity(self) -> str:
        """Where runs go that name no entity.

        Raises:
            JobError: the server does not say.
        """
        with asking(self.url):
            entity = self.api.default_entity
        if not entity:
            raise JobError(f"{self.url} names no default entity; say --entity")
        return str(entity)

    def runs(
        self,
        entity: str,
        project: str,
        *,
        ids: Sequence[str] | None = None,
        group: str | None = None,
    ) -> dict[str, ServerRun]:
        """Runs of a project by id, oldest first: all, those of a group, or those of `ids` that are
        there. None where there is no such project.

        Raises:
            JobError: the server is away or refuses.
        """
        filters: list[dict[str, Any]] = [{}]
        if ids is not None:
            starts = range(0, len(ids), _MOST_RUNS)
            filters = [{"name": {"$in": list(ids[at : at + _MOST_RUNS])}} for at in starts]
        elif group is not None:
            filters = [{"group": group}]
        self._note_folders(entity, project)
        found = {}
        for of in filters:
            with asking(self.url, missing="Could not find project"):
                for run in self.api.runs(f"{entity}/{project}", filters=of, lazy=False):
                    found[run.id] = _as_server_run(run)
                    self._remove_folders(Path(run.dir))
        return found

    def _note_folders(self, entity: str, project: str) -> None:
        """The library makes a folder for each run, entity/project/id, in WANDB_DIR or among
        temporary files. What was there before is somebody's."""
        owner = Path(wandb_env.get_dir(tempfile.gettempdir()) or ".") / entity
        with self._lock:
            for path in {owner, owner / project} - self._seen:
                self._seen.add(path)
                if path.exists():
                    self._users.add(path)

    def _remove_folders(self, folder: Path) -> None:
        for path in (folder, folder.parent, folder.parent.parent):
            if path not in self._users:
                with contextlib.suppress(OSError):
                    path.rmdir()  # an empty one

    def steps(self, run: ServerRun) -> Set[int]:
        """The numbers of the rows that the server has of a run.

        They are asked for where there is not one of each up to the last: some were lost or doubled.

        Raises:
            JobError: the server is away or refuses.
        """
        if run.last_step is None or run.last_step + 1 == run.num_rows:
            return frozenset(range(run.num_rows))
        found = set()
        with asking(self.url):
            for first in range(0, run.last_step + 1, _MOST_ROWS):
                page = {"first": first, "end": first + _MOST_ROWS, "most": _MOST_ROWS}
                project = run.handle._exec(_ROWS, **page)["project"]
                for row in project["run"]["history"]:
                    found.add(int((json.loads(row) if isinstance(row, str) else row)["_step"]))
        return found

    def add(
        self,
        run: ServerRun,
        metrics: Mapping[str, float],
        settings: Mapping[str, Any],
        joined: tuple[str, ...],
    ) -> list[str]:
        """Adds what is known after a run's end to its summary and its config.

        Args:
            metrics: numbers for its summary.
            settings: entries of its config.
            joined: numbers of its summary that begin with one of these, beside `metrics` and those
                of its history, are out of date, and go.

        Returns:
            The names that changed; none: the server was told nothing.

        Raises:
            JobError: the server is away or refuses.
        """
        own = run.metrics
        gone = [
            key
            for key in own
            if key.startswith(joined) and key not in metrics and key not in run.history_keys
        ]
        new = {key: value for key, value in metrics.items() if own.get(key) != value}
        set_anew = {key: value for key, value in settings.items() if run.config.get(key) != value}
        if not (gone or new or set_anew):
            return []
        with asking(self.url):
            summary = run.handle.summary
            for key in gone:
                del summary[key]
            for key, value in new.items():
                summary[key] = value  # not sent yet
            if set_anew:
                run.handle.config.update(set_anew)
                run.handle.update()
            else:
                summary.update()
        return [*gone, *new, *set_anew]


def _as_server_run(run: Any) -> ServerRun:
    attributes = run._attrs
    keys = attributes.get("historyKeys") or {}
    if isinstance(keys, str):
        keys = json.loads(keys)
    last_step = keys.get("lastStep")
    return ServerRun(
        id=run.id,
        group=attributes.get("group"),
        is_running=run.state in ("running", "pending"),
        has_ended=run.state in ("finished", "failed"),
        num_rows=int(attributes.get("historyLineCount") or 0),
        last_step=None if last_step is None else int(last_step),
        config=dict(run.config),
        summary=dict(run.summary_metrics),
        history_keys=frozenset(map(str, keys.get("keys") or {})),
        handle=run,
    )


def plain_url(url: str) -> str:
    """Scheme, host, port and path alone: what else there is may be a password or a signature."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return "an address that is none"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}".rstrip("/")


def without_secrets(text: str) -> str:
    """A message with its addresses as `plain_url` has them."""
    return re.sub(r"https?://[^\s\"'<>]+", lambda found: plain_url(found[0]), text)


@contextlib.contextmanager
def asking(url: str, *, missing: str | None = None) -> Iterator[None]:
    """Whatever goes wrong inside is one line about the server.

    Args:
        url: of the server.
        missing: how an error begins that says that there is nothing: it ends the block in order.

    Raises:
        JobError: something went wrong.
    """
    try:
        yield
    except JobError:
        raise
    except (
        wandb.Error,
        WandbApiFailedError,
        OSError,
        ValueError,
        # An answer that is none: a null where the library expects an object.
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        said = str(error)
        if missing is not None and missing in said:
            return
        reason = without_secrets(" ".join(said.split())) or type(error).__name__
        raise JobError(f"W&B at {url} cannot be used: {reason}") from error
