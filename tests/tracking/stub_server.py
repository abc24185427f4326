"""A local server that answers the requests of wandb, its public API and wandb-workspaces, and keeps
what it was sent.

It knows the GraphQL requests of a run, the stream of its rows and the upload of its files, the
requests of the public API about runs, and those about views (workspaces and reports).
`error_status`, `delay_s` and `failing` make it fail in the middle of a run; `stop` and `start` take
it from its port and bring it back. WANDB_BASE_URL points wandb at `url`.
"""

import base64
import contextlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

ENTITY = "stub"
"""The account's name."""

_HISTORY = "wandb-history.jsonl"
_STREAM = re.compile(r"/files/(?P<entity>[^/]+)/(?P<project>[^/]+)/(?P<run>[^/]+)/file_stream")
_STORAGE = "/storage/"


@dataclass
class StubRun:
    """What the server knows of a run."""

    name: str
    project: str = ""
    group: str | None = None
    display_name: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """As wandb sends it: each value under `value`."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Of each streamed file; the rows are those of wandb-history.jsonl."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Uploaded whole, by their path in the run."""
    exit_code: int | None = None
    is_open: bool = True
    """Not told of its end."""
    written_summary: dict[str, Any] | None = None
    """Put in the place of what was streamed, after the run's end."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, in their order."""
        return [json.loads(line) for line in self.lines.get(_HISTORY, [])]

    @property
    def summary(self) -> dict[str, Any]:
        """The last that was sent."""
        if self.written_summary is not None:
            return self.written_summary
        lines = self.lines.get("wandb-summary.json", [])
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found


@dataclass
class StubView:
    """A workspace (`project-view`) or a report (`runs`)."""

    id: str
    type: str
    project: str
    name: str
    display_name: str
    description: str
    spec: dict[str, Any]
    num_saved: int = 1


class StubServer:
    """The server, on a port of its own; a context manager, which stops it."""

    def __init__(self) -> None:
        self.runs: dict[str, StubRun] = {}
        """By id."""
        self.views: list[StubView] = []
        self.failing: tuple[str, int] | None = None
        """A part of a request's path, or of a GraphQL operation's name, and the status that it is
        answered with."""
        self.requests: list[tuple[str, bytes]] = []
        """Path and body of each request; of a GraphQL request the operation's name."""
        self.error_status: int | None = None
        """What every request is answered by: 500 is asked again, 403 ends the upload."""
        self.delay_s = 0.0
        """Seconds before an answer; those that wait get theirs when the server stops."""
        self._num_views = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """For WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, on the same port as before."""
        self._stopping.clear()
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.stub = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from here on."""
        if self._server is not None:
            self._stopping.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and content of the answer to a request."""
        asked = json.loads(body) if path == "/graphql" else {}
        name = _operation(asked["query"]) if asked else path
        open("/tmp/w/D2_ops", "a").write(name.split("/")[1 if name[0] == "/" else 0] + "\n")
        with self._lock:
            self.requests.append((name, body))
        if self.delay_s:
            self._stopping.wait(self.delay_s)
        if self.error_status is not None or self._stopping.is_set():
            return self.error_status or 503, {"error": "the stub fails"}
        if self.failing is not None and self.failing[0] in name:
            return self.failing[1], {"error": "the stub fails there"}
        with self._lock:
            if asked:
                return self._graphql(name, asked.get("variables") or {})
            if found := _STREAM.fullmatch(path):
                return 200, self._stream(self._run(unquote(found["run"])), json.loads(body))
            if path.startswith(_STORAGE) and method == "PUT":
                run, _, file = path.removeprefix(_STORAGE).partition("/")
                self._run(unquote(run)).files[unquote(file)] = body
                return 200, {}
        return 404, {"error": f"the stub knows no {method} {path}"}

    def _run(self, name: str) -> StubRun:
        return self.runs.setdefault(name, StubRun(name))

    def _graphql(self, name: str, variables: dict[str, Any]) -> tuple[int, Any]:
        known = {
            "Viewer": self._viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "RunResumeStatus": self._resume_status,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": self._create_files,
            "GetDefaultEntity": self._viewer,
            "Runs": self._runs_of_project,
            "GetProjects": self._projects,
            "ProjectInternalId": self._project_id,
            "View": self._views_of_project,
            "SpecificReport": lambda asked: {"view": self._view_of(asked["reportId"])},
            "UpsertView2": self._upsert_view,
            "upsertView": self._upsert_view,
        }
        if name not in known:
            return 400, {"errors": [{"message": f"the stub knows no {name}"}]}
        return 200, {"data": known[name](variables)}

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "username": ENTITY, "entity": ENTITY, "flags": "{}"}}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            counts = {kind: len(run.lines.get(f"wandb-{kind}.jsonl", [])) for kind in _KINDS}
            tails = {kind: run.lines.get(f"wandb-{kind}.jsonl", [])[-1:] for kind in _KINDS}
            bucket = {
                "name": run.name,
                "displayName": run.display_name,
                "summaryMetrics": json.dumps(run.summary),
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": None,
                "logLineCount": len(run.lines.get("output.log", [])),
                "historyLineCount": counts["history"],
                "eventsLineCount": counts["events"],
                "historyTail": json.dumps(tails["history"]),
                "eventsTail": json.dumps(tails["events"]),
                "wandbConfig": json.dumps({"t": 1}),
            }
        project = variables.get("project")
        return {"model": {"id": "p", "name": project, "entity": {"name": ENTITY}, "bucket": bucket}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        # The public API names a run by the id that it was told of.
        name = variables.get("name") or variables["id"]
        is_new = name not in self.runs
        run = self._run(name)
        run.project = variables.get("project") or run.project
        run.group = variables.get("groupName") or run.group
        run.display_name = variables.get("displayName") or run.display_name
        run.tags = variables.get("tags") or run.tags
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if variables.get("summaryMetrics") and not run.is_open:
            run.written_summary = json.loads(variables["summaryMetrics"])
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.display_name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.lines.get(_HISTORY, [])),
        }
        if not variables.get("name"):
            bucket = self._node(run)
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _create_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [
            {"name": file, "uploadUrl": f"{self.url}{_STORAGE}{run}/{file}"}
            for file in variables["files"]
        ]
        created = {"runID": run, "uploadHeaders": [], "files": files}
        return {"createRunFiles": created}

    def _stream(self, run: StubRun, sent: dict[str, Any]) -> dict[str, Any]:
        for file, chunk in (sent.get("files") or {}).items():
            lines = run.lines.setdefault(file, [])
            offset = int(chunk["offset"])
            lines[offset : offset + len(chunk["content"])] = chunk["content"]
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
            run.is_open = False
        return {}

    # What the public API asks

    def _node(self, run: StubRun) -> dict[str, Any]:
        """A run as the public API is told of it."""
        names = {key for row in run.history for key in row}
        state = "running" if run.is_open else "failed" if run.exit_code else "finished"
        return {
            "id": run.name,
            "projectId": 1,
            "tags": run.tags,
            "name": run.name,
            "displayName": run.display_name,
            "sweepName": None,
            "state": state,
            "config": json.dumps(run.config),
            "group": run.group,
            "jobType": None,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-11-24T00:00:00",
            "heartbeatAt": "2026-11-24T00:00:00",
            "description": None,
            "notes": None,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines.get(_HISTORY, [])),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {
                "keys": {name: {} for name in sorted(names)},
                "lastStep": max((row["_step"] for row in run.history), default=-1),
            },
        }

    def _runs_of_project(self, variables: dict[str, Any]) -> dict[str, Any]:
        runs = [run for run in self.runs.values() if run.project == variables["project"]]
        if variables["entity"] != ENTITY or not runs:
            return {"project": None}
        filters = json.loads(variables["filters"])
        if "name" in filters:
            runs = [run for run in runs if run.name in filters["name"]["$in"]]
        if "group" in filters:
            runs = [run for run in runs if run.group == filters["group"]]
        # Two a page, so that there is a next one.
        start = int(variables.get("cursor") or 0)
        page = runs[start : start + 2]
        edges = [
            {"node": self._node(run), "cursor": str(start + at + 1)} for at, run in enumerate(page)
        ]
        more = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(runs)}
        found = {"edges": edges, "pageInfo": more}
        return {"project": {"internalId": 1, "runCount": len(runs), "runs": found}}

    def _projects(self, variables: dict[str, Any]) -> dict[str, Any]:
        names = sorted({run.project for run in self.runs.values()})
        nodes = [
            {"__typename": "Project", "id": name, "name": name, "entityName": ENTITY}
            | {"createdAt": "2026-11-24T00:00:00", "isBenchmark": False, "user": None}
            for name in names
        ]
        more = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": more, "edges": [{"node": node} for node in nodes]}}

    def _project_id(self, variables: dict[str, Any]) -> dict[str, Any]:
        is_there = any(run.project == variables["projectName"] for run in self.runs.values())
        return {"project": {"id": "p", "internalId": "1"} if is_there else None}

    def _views_of_project(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["viewName"]
        views = [view for view in self.views if name in view.name]
        edges = [{"node": self._view_node(view), "cursor": view.id} for view in views]
        more = {"endCursor": None, "hasNextPage": False}
        return {"project": {"allViews": {"edges": edges, "pageInfo": more}}}

    def _view_of(self, view_id: str) -> dict[str, Any] | None:
        found = [view for view in self.views if view.id.strip("=") == view_id.strip("=")]
        return self._view_node(found[0]) if found else None

    def _view_node(self, view: StubView) -> dict[str, Any]:
        return {
            "id": view.id,
            "type": view.type,
            "name": view.name,
            "displayName": view.display_name,
            "description": view.description,
            "user": None,
            "project": {"id": "p", "name": view.project, "entityName": ENTITY},
            "spec": json.dumps(view.spec),
            "createdAt": "2026-11-24T00:00:00",
            "updatedAt": "2026-11-24T00:00:00",
        }

    def _upsert_view(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = [view for view in self.views if view.id == variables.get("id")]
        sent = {
            "type": variables["type"],
            "project": variables["projectName"],
            "name": variables["name"],
            "display_name": variables["displayName"],
            "description": variables.get("description") or "",
            "spec": json.loads(variables["spec"]),
        }
        if found:
            [view] = found
            for name, value in sent.items():
                setattr(view, name, value)
            view.num_saved += 1
        else:
            self._num_views += 1
            view_id = base64.b64encode(f"View:{1000 + self._num_views}".encode()).decode()
            view = StubView(id=view_id, **sent)
            self.views.append(view)
        return {"upsertView": {"view": self._view_node(view), "inserted": not found}}


_KINDS = ("history", "events")


def _operation(query: str) -> str:
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return found[1] if found else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    stub: StubServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content = self.server.stub.answer(self.command, urlsplit(self.path).path, body)
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked may not have waited
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: tests read what a job says."""
