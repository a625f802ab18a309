"""The list of all runs of a folder, as `cai serve` shows it."""

import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from pydantic import TypeAdapter, ValidationError

from cai.compare.compare import compare_runs
from cai.config.errors import CaiError
from cai.report.comparison import Together, comparison_report, together
from cai.report.html import POLICY, SCRIPTS, plotly, script, served_page
from cai.report.run import Contents, read_run, run_report
from cai.report.table import Line, Query, Table, select, written
from cai.runs.folder import RunFolder, all_runs
from cai.runs.metrics import summary_metrics


class Listed(NamedTuple):
    """A run on the list; a damaged one has its fault in place of its figures."""

    name: str
    url: str
    started: str
    state: str
    constitution: str = ""
    model: str = ""
    prompts: str = ""
    training: str = ""
    win_rate: str = ""


def list_page(runs: Path, folders: Mapping[str, RunFolder]) -> str:
    """The HTML of the list; `folders` by name."""
    found = [listed(name, folder) for name, folder in folders.items()]
    return served_page("runs.html.jinja", runs=str(runs), listed=found)


def listed(name: str, folder: RunFolder) -> Listed:
    """A run as the list has it."""
    started = folder.started()
    told = started.strftime("%Y-%m-%d %H:%M") if started else ""
    found = Listed(name, f"/report?{urlencode({'run': name})}", told, "unfinished")
    try:
        manifest, summary = folder.manifest(), folder.summary()
        return _with_figures(found, manifest, summary)
    except CaiError as error:
        return found._replace(state=str(error))
    except (LookupError, TypeError, AttributeError):
        return found._replace(state="made by another version of cai")


def _with_figures(found: Listed, manifest: dict[str, Any], summary: dict[str, Any] | None) -> Listed:
    config, constitution = manifest.get("config") or {}, manifest.get("constitution") or {}
    found = found._replace(
        constitution=f"{constitution.get('name', '')} ({len(constitution.get('principles') or {})})",
        model=str(config.get("model", "")),
        training=" ".join(stage.get("stage", "") for stage in config.get("train") or []),
    )
    if summary is None:
        return found
    win_rate = summary_metrics(summary).get("win_rate")
    return found._replace(
        state="finished",
        prompts=str(summary["prompts"] + summary["held_out"]),
        win_rate=str(win_rate) if win_rate else "",
    )


# The runs of a folder, read through when they are asked for and kept as long as their files stay the same.


KEPT = 4  # of each kind, in memory: where rows stand and what they are found by, no texts


class Kept:
    """The last few things that took long to make, by what they were made from. One is made at a time."""

    def __init__(self) -> None:
        self._found: OrderedDict[object, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], Any]) -> Any:
        """What is kept under a key, or else what `make` makes."""
        with self._lock:
            if key not in self._found:
                self._found[key] = make()
            self._found.move_to_end(key)
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
            return self._found[key]


class Opened(NamedTuple):
    """One run, or several compared, with what its examples are made from."""

    made_from: object
    run: Contents | None
    comparison: Together | None

    @property
    def table(self) -> Table:
        """Its examples."""
        found = self.run or self.comparison
        assert found is not None
        return found.table


class Library:
    """The runs of a folder, as they are whenever one is asked for."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._opened, self._selected = Kept(), Kept()

    def folders(self) -> dict[str, RunFolder]:
        """All runs by their path below the folder, the newest first."""
        return {str(folder.path.relative_to(self.runs)): folder for folder in all_runs(self.runs)}

    def folder(self, name: str) -> RunFolder:
        """A run that there is, looked up and never opened by a path; raises LookupError for any other name."""
        found = self.folders().get(name)
        if found is None:
            raise LookupError(f"there is no run '{name}' in {self.runs}")
        return found

    def open(self, names: Sequence[str]) -> Opened:
        """A run, or several compared. Raises: LookupError, CaiError when a file cannot be read."""
        folders = [self.folder(name) for name in names]
        made_from = tuple(map(_state, folders))

        def read() -> Opened:
            if len(folders) == 1:
                return Opened(made_from, read_run(folders[0]), None)
            return Opened(made_from, None, together(compare_runs(folders), folders))

        opened: Opened = self._opened.get(made_from, read)
        return opened

    def select(self, opened: Opened, query: Query) -> list[Line]:
        """All lines that a query asks for, found once for all of its pages."""
        what = (opened.made_from, query.text, *sorted(query.facets.items()), query.sort, query.descending)
        lines: list[Line] = self._selected.get(what, lambda: select(opened.table, query))
        return lines


def _state(folder: RunFolder) -> tuple[object, ...]:
    """Something that changes when a file of the run does."""
    files = [
        folder.manifest_json, folder.constitution_yaml, folder.prompts_jsonl, folder.revisions_jsonl,
        folder.preferences_jsonl, folder.rankings_jsonl, folder.evaluation_jsonl, folder.skipped_jsonl,
        folder.summary_json, folder.eval / "comparisons.jsonl", *sorted(folder.train.glob("*/metrics.jsonl")),
    ]  # fmt: skip
    stats = [(str(path), path.stat()) for path in files if path.exists()]
    return (str(folder.path), *((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))


# `cai serve`: the runs of a folder in a browser, each with all of its examples.
#
# It answers requests for what there is and writes nothing. No address holds a path: a run is looked up by its name.


HEADERS = {
    "Content-Security-Policy": f"{POLICY}; script-src 'self'; connect-src 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
QUERY = TypeAdapter(Query)


class Answer(NamedTuple):
    """What a request is answered with."""

    body: str
    kind: str = "text/html"
    status: HTTPStatus = HTTPStatus.OK


def answer(library: Library, target: str) -> Answer:
    """The answer to a GET of `target`, the path and query of an address."""
    address = urlsplit(target)
    values = parse_qs(address.query)
    names = values.get("run", [])
    try:
        if address.path == "/":
            return Answer(list_page(library.runs, library.folders()))
        if address.path.startswith("/assets/"):
            return _asset(address.path.removeprefix("/assets/"))
        if address.path == "/report" and names:
            return Answer(_page(library, names))
        if address.path == "/examples" and names:
            return _examples(library, names, values)
    except (ValidationError, IndexError) as error:
        return Answer(f"the query cannot be understood: {error}", "text/plain", HTTPStatus.BAD_REQUEST)
    except LookupError as error:
        return Answer(str(error), "text/plain", HTTPStatus.NOT_FOUND)
    except CaiError as error:
        return Answer(str(error), "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR)
    return Answer("there is nothing here", "text/plain", HTTPStatus.NOT_FOUND)


def _page(library: Library, names: list[str]) -> str:
    opened = library.open(names)
    url = "/examples?" + urlencode([("run", name) for name in names])
    if opened.run is not None:
        return run_report(library.folder(names[0]), opened.run, url)
    assert opened.comparison is not None
    return comparison_report(opened.comparison, url)


def _examples(library: Library, names: list[str], values: dict[str, list[str]]) -> Answer:
    """One example opened (`id`), or a part of the lines that a query asks for."""
    opened = library.open(names)
    found: Any
    if "id" in values:
        if all(line.id != values["id"][0] for line in opened.table.lines):
            raise LookupError("there is no such example")
        found = opened.table.detail(values["id"][0]).written()
    else:
        query: Query = QUERY.validate_json(values.get("query", ["{}"])[0])
        lines = library.select(opened, query)
        part = lines[query.start : query.start + query.size]
        found = {"matched": len(lines), "lines": list(map(written, part))}
    return Answer(json.dumps(found), "application/json")


def _asset(name: str) -> Answer:
    if name == "plotly.js":
        return Answer(plotly(), "text/javascript")
    if name in (*SCRIPTS, "runs.js"):
        return Answer(script(name), "text/javascript")
    raise LookupError("there is nothing here")


class Server(ThreadingHTTPServer):
    """Answers from a library; a page of another site cannot reach it under a name of its own (DNS rebinding)."""

    daemon_threads = True

    def __init__(self, library: Library, host: str, port: int) -> None:
        self.library = library
        self.local = _is_local(host)
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def _send(self, with_body: bool) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.server.local and not _is_local(host):
            found = Answer("this server answers under localhost alone", "text/plain", HTTPStatus.FORBIDDEN)
        else:
            found = answer(self.server.library, self.path)
        body = found.body.encode()
        self.send_response(found.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{found.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Only what failed is worth a line."""
        if len(args) > 1 and str(args[1]).startswith("5"):
            sys.stderr.write(f"{args[0]!r}: {args[1]}\n")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def open_server(runs: Path, host: str, port: int) -> Server:
    """A server of the runs below a folder; port 0 takes any. Raises: CaiError when it cannot listen."""
    if not runs.is_dir():
        raise CaiError(f"{runs}: no such folder; expected one that holds runs")
    try:
        return Server(Library(runs), host, port)
    except (OSError, OverflowError) as error:
        raise CaiError(f"{host}:{port}: cannot listen there: {error}; choose another --port or --host") from None
