"""A local server that answers the requests of wandb, its public API and wandb-workspaces, and keeps
what it was sent.

It knows the GraphQL requests about runs and about views (workspaces and reports), the stream of a
run's rows, and the upload of its files. WANDB_BASE_URL points wandb at `url`.
"""

import base64
import contextlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ENTITY = "stub"
"""The account's name."""

_HISTORY = "wandb-history.jsonl"
_DATE = "2026-11-24T00:00:00"


@dataclass
class StubRun:
    """What the server knows of a run."""

    name: str
    project: str = ""
    group: str | None = None
    display_name: str | None = None
    sweep: str | None = None
    """The id of the agent's sweep."""
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

    def node(self) -> dict[str, Any]:
        """The run as GraphQL answers have it."""
        state = "running" if self.is_open else "failed" if self.exit_code else "finished"
        names = {key for row in self.history for key in row}
        last_step = max((row["_step"] for row in self.history), default=-1)
        absent = ("sweepName", "jobType", "commit", "description", "notes")
        return dict.fromkeys(absent) | {
            "id": self.name,
            "name": self.name,
            "displayName": self.display_name,
            "projectId": 1,
            "project": {"id": "p", "name": self.project, "entity": {"id": "e", "name": ENTITY}},
            "group": self.group,
            "tags": self.tags,
            "state": state,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "readOnly": False,
            "createdAt": _DATE,
            "heartbeatAt": _DATE,
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"keys": {name: {} for name in names}, "lastStep": last_step},
            "historyLineCount": len(self.history),
            "historyTail": json.dumps(self.lines.get(_HISTORY, [])[-1:]),
            "logLineCount": len(self.lines.get("output.log", [])),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": 1} if self.display_name else {}),  # has begun
        }


@dataclass
class StubView:
    """A workspace (`project-view`) or a report (`runs`)."""

    id: str
    type: str = ""
    project: str = ""
    name: str = ""
    display_name: str = ""
    description: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    num_saved: int = 0

    def node(self) -> dict[str, Any]:
        """The view as GraphQL answers have it."""
        return {
            "id": self.id,
            "type": self.type,
            "name": self.name,
            "displayName": self.display_name,
            "description": self.description,
            "user": None,
            "project": {"id": "p", "name": self.project, "entityName": ENTITY},
            "spec": json.dumps(self.spec),
            "createdAt": _DATE,
            "updatedAt": _DATE,
        }


class StubServer:
    """The server, on a port of its own; `close` stops it."""

    def __init__(self) -> None:
        self.runs: dict[str, StubRun] = {}
        """By id."""
        self.views: list[StubView] = []
        self.requests: list[tuple[str, bytes]] = []
        """Path and body of each request; of a GraphQL request the operation's name."""
        self.sweep_config = ""
        """The sweep that agents ask for, in YAML."""
        self.agent_runs: list[tuple[str, dict[str, Any]]] = []
        """Ids and settings of the runs that agents have not started."""
        self.delay_s = 0.0
        """Seconds before an answer; those that wait get theirs when the server stops."""
        self._num_views = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = stub.answer(self.command, urlsplit(self.path).path, body)
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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Connections are refused from here on."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and content of the answer to a request."""
        asked = json.loads(body) if path == "/graphql" else {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked.get("query", ""))
        name = operation[1] if operation else path
        with self._lock:
            self.requests.append((name, body))
        self._stopping.wait(self.delay_s)
        if self._stopping.is_set():
            return 503, {"error": "the stub stops"}
        with self._lock:
            if asked:
                return self._graphql(name, asked.get("variables") or {})
            *_, run, file = unquote(path).rsplit("/", 2)
            if file == "file_stream":
                return 200, self._stream(self._run(run), json.loads(body))
            if path.startswith("/storage/") and method == "PUT":
                run, _, file = unquote(path.removeprefix("/storage/")).partition("/")
                self._run(run).files[file] = body
                return 200, {}
        return 404, {"error": f"the stub knows no {method} {path}"}

    def _run(self, name: str) -> StubRun:
        return self.runs.setdefault(name, StubRun(name))

    def _graphql(self, name: str, asked: dict[str, Any]) -> tuple[int, Any]:
        viewer = {"viewer": {"id": "1", "username": ENTITY, "entity": ENTITY, "flags": "{}"}}
        match name:
            case "Viewer" | "GetDefaultEntity":
                data: Any = viewer
            case "RunResumeStatus":
                run = self.runs.get(asked["name"])
                model = {"id": "p", "name": asked.get("project"), "entity": {"name": ENTITY}}
                data = {"model": model | {"bucket": run and run.node()}}
            case "UpsertBucket":
                data = self._upsert_run(asked)
            case "SweepWithRuns":
                data = {"project": {"sweep": {"config": self.sweep_config, "runs": {"edges": []}}}}
            case "CreateAgent":
                data = {"createAgent": {"agent": {"id": "agent"}}}
            case "Heartbeat":
                data = {"agentHeartbeat": {"commands": json.dumps(self._commands(asked))}}
            case "CreateRunFiles":
                url = f"{self.url}/storage/{asked['run']}/"
                files = [{"name": file, "uploadUrl": url + file} for file in asked["files"]]
                data = {"createRunFiles": {"runID": asked["run"], "uploadHeaders": []}}
                data["createRunFiles"]["files"] = files
            case "Runs":
                data = self._runs_of_project(asked)
            case "GetProjects":
                names = sorted({run.project for run in self.runs.values()})
                nodes = [
                    {"__typename": "Project", "id": name, "name": name, "entityName": ENTITY}
                    | {"createdAt": _DATE, "isBenchmark": False, "user": None}
                    for name in names
                ]
                data = {"models": _page(nodes, start=0, size=100)}
            case "ProjectInternalId":
                projects = {run.project for run in self.runs.values()}
                found = {"id": "p", "internalId": "1"}
                data = {"project": found if asked["projectName"] in projects else None}
            case "View":
                views = [view.node() for view in self.views if asked["viewName"] in view.name]
                data = {"project": {"allViews": _page(views, start=0, size=100)}}
            case "SpecificReport":
                wanted = asked["reportId"].strip("=")
                views = [view.node() for view in self.views if view.id.strip("=") == wanted]
                data = {"view": views[0] if views else None}
            case "UpsertView2" | "upsertView":
                data = self._upsert_view(asked)
            case _:
                return 400, {"errors": [{"message": f"the stub knows no {name}"}]}
        return 200, {"data": data}

    def _upsert_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        # The public API names a run by the id that it was told of.
        name = asked.get("name") or asked["id"]
        is_new = name not in self.runs
        run = self._run(name)
        run.project = asked.get("project") or run.project
        run.group = asked.get("groupName") or run.group
        run.display_name = asked.get("displayName") or run.display_name
        run.tags = asked.get("tags") or run.tags
        run.sweep = asked.get("sweep") or run.sweep
        if asked.get("config"):
            run.config = json.loads(asked["config"])
        if asked.get("summaryMetrics") and not run.is_open:
            run.written_summary = json.loads(asked["summaryMetrics"])
        return {"upsertBucket": {"bucket": run.node(), "inserted": is_new}}

    def _commands(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """For an agent that runs nothing, the next run, which exists from then on."""
        if json.loads(asked["runState"]) or not self.agent_runs:
            return []
        name, settings = self.agent_runs.pop(0)
        args = {key: {"value": value} for key, value in settings.items()}
        self._run(name).config = args
        return [{"type": "run", "run_id": name, "program": "gr-sweep", "args": args}]

    def _stream(self, run: StubRun, sent: dict[str, Any]) -> dict[str, Any]:
        for file, chunk in (sent.get("files") or {}).items():
            lines = run.lines.setdefault(file, [])
            offset = int(chunk["offset"])
            lines[offset : offset + len(chunk["content"])] = chunk["content"]
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
            run.is_open = False
        return {}

    def _runs_of_project(self, asked: dict[str, Any]) -> dict[str, Any]:
        runs = [run for run in self.runs.values() if run.project == asked["project"]]
        if asked["entity"] != ENTITY or not runs:
            return {"project": None}
        wanted = json.loads(asked["filters"])["name"]["$in"]
        nodes = [run.node() for run in runs if run.name in wanted]
        # Two a page, so that there is a next one.
        page = _page(nodes, start=int(asked.get("cursor") or 0), size=2)
        return {"project": {"internalId": 1, "runCount": len(nodes), "runs": page}}

    def _upsert_view(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [view for view in self.views if view.id == asked.get("id")]
        if not found:
            self._num_views += 1
            view_id = base64.b64encode(f"View:{1000 + self._num_views}".encode()).decode()
            self.views.append(StubView(view_id))
        view = found[0] if found else self.views[-1]
        view.type, view.project, view.name = asked["type"], asked["projectName"], asked["name"]
        view.display_name, view.description = asked["displayName"], asked.get("description") or ""
        view.spec = json.loads(asked["spec"])
        view.num_saved += 1
        return {"upsertView": {"view": view.node(), "inserted": not found}}


def _page(nodes: list[Any], *, start: int, size: int) -> dict[str, Any]:
    shown = nodes[start : start + size]
    edges = [{"node": node, "cursor": str(start + at + 1)} for at, node in enumerate(shown)]
    end = start + len(shown)
    return {"edges": edges, "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(nodes)}}
