"""`cai serve`: the runs of a folder in a browser, as lists, as reports with all of their examples, and compared.

The server answers GET requests, and writes no file. No address holds a path: a run is looked up by its name.
Where the rows of a run's files begin is kept in memory for as long as the files stay the same; their texts are not.
"""

import json
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from pydantic import TypeAdapter, ValidationError

from cai.compare.compare import compare_runs
from cai.config.errors import CaiError
from cai.config.yaml_files import as_yaml
from cai.data.jsonl import read_rows
from cai.data.records import Skipped
from cai.evaluation.policy_report import REPORT, read_report
from cai.report.comparison import ComparisonContents, comparison_report, read_comparison
from cai.report.html import POLICY, SCRIPTS, Content, plotly_script, render_report, source
from cai.report.lists import list_page, sweep_page
from cai.report.run import RunContents, evaluation_grids, evaluation_plots, read_run, run_report, stage_plots
from cai.report.table import Line, Query, Table, line_json, select
from cai.runs.folder import RunFolder, all_runs, all_trainings, stage_settings
from cai.runs.metrics import stage_folders, stage_results, training_lines
from cai.runs.trust import training_trust

MAX_CACHED = 4  # of each kind, in memory: where rows are and what they are found by, no texts


class Recent:
    """The MAX_CACHED values that were last asked for, by key; computed one at a time."""

    def __init__(self) -> None:
        self._values: OrderedDict[object, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, compute: Callable[[], Any]) -> Any:
        """The value under a key, computed where it is not cached."""
        with self._lock:
            if key not in self._values:
                self._values[key] = compute()
            self._values.move_to_end(key)
            while len(self._values) > MAX_CACHED:
                self._values.popitem(last=False)
            return self._values[key]


class LoadedReport(NamedTuple):
    """One run, or several compared, as read from files in one `state`."""

    state: object
    run: RunContents | None
    comparison: ComparisonContents | None

    @property
    def table(self) -> Table:
        """Its examples."""
        contents = self.run or self.comparison
        assert contents is not None
        return contents.table


class Library:
    """The runs of a folder; what a request shows is what the files hold at that moment."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._reports, self._selections = Recent(), Recent()

    def folders(self) -> dict[str, RunFolder]:
        """All runs by their path below the folder, the newest first."""
        return {str(folder.path.relative_to(self.runs)): folder for folder in all_runs(self.runs)}

    def folder(self, name: str) -> RunFolder:
        """A run by its name, never by a path; raises LookupError for an unknown name."""
        folder = self.folders().get(name)
        if folder is None:
            raise LookupError(f"there is no run '{name}' in {self.runs}")
        return folder

    def training(self, name: str) -> Path | None:
        """A folder of `cai train` by its name; None for none."""
        return next((path for path in all_trainings(self.runs) if path.name == name), None)

    def load(self, names: Sequence[str]) -> LoadedReport:
        """A run, or several compared. Raises: LookupError, CaiError when a file cannot be read."""
        folders = [self.folder(name) for name in names]
        state = tuple(map(_state, folders))

        def read() -> LoadedReport:
            if len(folders) == 1:
                return LoadedReport(state, read_run(folders[0]), None)
            return LoadedReport(state, None, read_comparison(compare_runs(folders), folders))

        report: LoadedReport = self._reports.get(state, read)
        return report

    def select(self, report: LoadedReport, query: Query) -> list[Line]:
        """All lines that match a query, computed once for all pages of the result."""
        key = (report.state, query.text, *sorted(query.facets.items()), query.sort, query.descending)
        lines: list[Line] = self._selections.get(key, lambda: select(report.table, query))
        return lines


def _state(folder: RunFolder) -> tuple[object, ...]:
    """A value that changes whenever a file of the run does."""
    files = [
        folder.manifest_json, folder.constitution_yaml, folder.prompts_jsonl, folder.revisions_jsonl,
        folder.preferences_jsonl, folder.rankings_jsonl, folder.skipped_jsonl,
        folder.summary_json, *(path / "comparisons.jsonl" for path in folder.evaluations()),
        *(stage / "metrics.jsonl" for _, stage in stage_folders(folder)),
    ]  # fmt: skip
    stats = [(str(path), path.stat()) for path in files if path.exists()]
    return (str(folder.path), *((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))


HEADERS = {
    "Content-Security-Policy": f"{POLICY}; script-src 'self'; connect-src 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
QUERY = TypeAdapter(Query)
HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]*))(?::[0-9]{0,5})?", re.ASCII)


class Response(NamedTuple):
    """The response to a request."""

    body: str
    kind: str = "text/html"
    status: HTTPStatus = HTTPStatus.OK


def respond(library: Library, target: str) -> Response:
    """The response to a GET of `target`, the path and query of an address."""
    try:
        address = urlsplit(target)
    except ValueError as error:  # such as http://[
        return Response(f"invalid address: {error}", "text/plain", HTTPStatus.BAD_REQUEST)
    values = parse_qs(address.query)
    names = values.get("run", [])
    try:
        if address.path == "/":
            return Response(list_page(library.runs))
        if address.path == "/sweep" and "sweep" in values:
            return Response(sweep_page(library.runs, values["sweep"][0]))
        if address.path.startswith("/assets/"):
            return _asset(address.path.removeprefix("/assets/"))
        if address.path == "/report" and names:
            return Response(_page(library, names))
        if address.path == "/examples" and names:
            return _examples(library, names, values)
    except (ValidationError, IndexError) as error:
        return Response(f"invalid query: {error}", "text/plain", HTTPStatus.BAD_REQUEST)
    except LookupError as error:
        return Response(str(error), "text/plain", HTTPStatus.NOT_FOUND)
    except CaiError as error:
        return Response(str(error), "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR)
    return Response("page not found", "text/plain", HTTPStatus.NOT_FOUND)


def _page(library: Library, names: list[str]) -> str:
    url = "/examples?" + urlencode([("run", name) for name in names])
    if len(names) == 1 and (training := library.training(names[0])):
        return training_report(names[0], training, url)
    report = library.load(names)
    if report.run is not None:
        return run_report(library.folder(names[0]), report.run, url)
    assert report.comparison is not None
    return comparison_report(report.comparison, url)


def _examples(library: Library, names: list[str], values: dict[str, list[str]]) -> Response:
    """One example (`id`), or a part of the lines that match a query."""
    report = library.load(names)
    content: dict[str, Any]
    if "id" in values:
        if all(line.id != values["id"][0] for line in report.table.lines):
            raise LookupError("there is no such example")
        content = report.table.detail(values["id"][0]).to_json()
    else:
        query: Query = QUERY.validate_json(values.get("query", ["{}"])[0])
        lines = library.select(report, query)
        part = lines[query.start : query.start + query.size]
        content = {"matched": len(lines), "lines": list(map(line_json, part))}
    return Response(json.dumps(content), "application/json")


def _asset(name: str) -> Response:
    if name == "plotly.js":
        return Response(plotly_script(), "text/javascript")
    if name in (*SCRIPTS, "runs.js"):
        return Response(source(name), "text/javascript")
    raise LookupError("page not found")


class Server(ThreadingHTTPServer):
    """Serves a library. One that listens on this machine alone refuses other host names, as in DNS rebinding."""

    daemon_threads = True

    def __init__(self, library: Library, host: str, port: int) -> None:
        self.library = library
        self.local = _is_local(host)
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The address to open."""
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
        parts = HOST.fullmatch(self.headers.get("Host", ""))
        if parts is None or len(self.headers.get_all("Host", [])) > 1:
            response = Response("malformed Host header", "text/plain", HTTPStatus.BAD_REQUEST)
        elif self.server.local and not _is_local((parts["name"] or parts["address"] or "").lower()):
            response = Response("this server answers only as localhost", "text/plain", HTTPStatus.FORBIDDEN)
        else:
            response = respond(self.server.library, self.path)
        body = response.body.encode("utf-8", "backslashreplace")  # a file's name may be no text
        self.send_response(response.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{response.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print failed requests alone."""
        if len(args) > 1 and str(args[1]).startswith("5"):
            sys.stderr.write(f"{args[0]!r}: {args[1]}\n")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def open_server(runs: Path, host: str, port: int) -> Server:
    """A server of the runs below a folder; port 0 picks a free one. Raises: CaiError when it cannot listen."""
    if not runs.is_dir():
        raise CaiError(f"{runs}: no such folder; expected a folder of runs")
    try:
        return Server(Library(runs), host, port)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: a host that is no name
        raise CaiError(f"{host}:{port}: cannot listen: {error}; choose another --port or --host") from None


def training_report(name: str, folder: Path, url: str) -> str:
    """The HTML of a training's page. Raises: CaiError for a file that cannot be read."""
    results = stage_results(folder)
    skipped = folder / "skipped.jsonl"
    trust = training_trust(folder, read_rows(skipped, Skipped) if skipped.exists() else [])
    stage = stage_settings(folder).get("stage", "")
    bins = (results["held_out"] or {}).get("reliability")
    drawn = stage_plots(stage, folder, bins)
    evaluation = folder / "eval" / REPORT
    evaluated = read_report(evaluation) if evaluation.exists() else None
    of_evaluation = evaluation_plots(evaluated) if evaluated else []
    values: dict[str, Any] = {
        "name": name,
        "stage": stage,
        "finished": (folder / "model").exists(),
        "lines": training_lines(results),
        "trust": trust,
        "settings": as_yaml(stage_settings(folder)),
        "training_plots": list(range(len(drawn))),
        "evaluated": evaluation_grids(evaluated) if evaluated else [],
        "evaluated_notes": evaluated.notes if evaluated else [],
        "evaluated_plots": list(range(len(drawn), len(drawn) + len(of_evaluation))),
    }
    return render_report("training.html.jinja", Content(None, [*drawn, *of_evaluation]), url, **values)
