import http.client
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.manifest import exclusive
from cai.report.run import read_run
from cai.report.serve import Library, Server, open_server, respond
from cai.runs.metrics import summary_metrics
from cai.runs.sweep import SWEEP_METRICS, make_sweep
from tests.report.folders import HOSTILE, write_run
from tests.runs.test_sweep import run_all, write_sweep


@pytest.fixture
def library(tmp_path: Path) -> Library:
    runs = tmp_path / "runs"
    write_run(runs / "one", prompts=9)
    write_run(runs / "two", prompts=9, say=lambda what, n: f"another {what} of {n}")
    write_run(runs / "sweep" / "leave-one-out", prompts=6)
    (runs / "sweep" / "sweep.json").write_text("{}", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    return Library(runs)


def examples(library: Library, run: str = "one", **query: object) -> dict[str, list[dict[str, object]]]:
    found = respond(library, "/examples?" + urlencode({"run": run, "query": json.dumps(query)}))
    assert found.status == HTTPStatus.OK, found.body
    value: dict[str, list[dict[str, object]]] = json.loads(found.body)
    return value


def test_the_list_has_every_run_those_of_sweeps_too(library: Library) -> None:
    page = respond(library, "/").body
    for name in ("one", "two", "sweep/leave-one-out"):
        assert f'href="/report?run={quote(name, safe="")}"' in page
    assert "finished" in page
    assert "the name of number 0 (0)" in page


def test_a_run_has_its_report_without_the_examples_and_two_have_their_comparison(library: Library) -> None:
    page = respond(library, "/report?run=one")
    assert page.status == HTTPStatus.OK
    assert "the critique of number 0" in page.body  # of the principle
    assert "the draft of number 0" not in page.body
    assert len(page.body) < 100_000
    assert "B vs A" in respond(library, "/report?run=one&run=two").body
    assert respond(library, "/report?run=sweep%2Fleave-one-out").status == HTTPStatus.OK


def test_examples_come_a_part_at_a_time_by_the_same_filters(library: Library) -> None:
    found = examples(library, start=2, size=3)
    assert (found["matched"], [line["id"] for line in found["lines"]]) == (9, ["p02", "p03", "p04"])
    assert [line["id"] for line in examples(library, facets={2: "copied critique"})["lines"]] == ["p01", "p03", "p05"]
    assert [line["id"] for line in examples(library, text="CRITIQUE of number 4")["lines"]] == ["p04"]
    assert [line["id"] for line in examples(library, text="prompt_id")["lines"]] == []  # a key of the file is no text
    assert [line["id"] for line in examples(library, sort=7, descending=True, size=2)["lines"]] == ["p08", "p07"]
    opened = json.loads(respond(library, "/examples?run=one&id=p04").body)
    assert "the revision of number 4" in opened["texts"]


def test_the_examples_of_a_comparison_are_those_of_all_its_runs(library: Library) -> None:
    found = json.loads(respond(library, "/examples?run=one&run=sweep%2Fleave-one-out").body)
    assert found["matched"] == 6
    opened = json.loads(respond(library, "/examples?run=one&run=sweep%2Fleave-one-out&id=p00").body)
    assert opened["blocks"][0]["title"] == "Draft, equal in A and B"


@pytest.mark.parametrize(
    "target",
    ["/report?run=../secret.txt", "/report?run=..", "/report?run=", "/report?run=/etc", "/report?run=one/../two", "/report?run=sweep",
     "/report?run=one&run=nowhere", "/assets/../serve.py", "/assets/serve.py", "/assets/", "/secret.txt", "/../secret.txt",
     "/examples?run=one&id=nobody", "/examples", "/report", "//", "/runs/one/manifest.json"],
)  # fmt: skip
def test_nothing_else_is_to_be_had(library: Library, target: str) -> None:
    found = respond(library, target)
    assert found.status == HTTPStatus.NOT_FOUND
    assert found.kind == "text/plain"
    assert "secret" not in found.body.replace("secret.txt", "")


@pytest.mark.parametrize(
    "query", ["{", '{"size": 0}', '{"size": 1000000}', '{"start": -1}', '{"facets": {"-1": "x"}}', '{"sort": 99}']
)
def test_a_query_that_cannot_be_understood_is_refused(library: Library, query: str) -> None:
    found = respond(library, "/examples?" + urlencode({"run": "one", "query": query}))
    assert found.status == HTTPStatus.BAD_REQUEST
    assert "query" in found.body


def test_a_run_that_goes_on_is_read_again(library: Library) -> None:
    assert len(examples(library, facets={4: "judge"})["lines"]) == 6
    folder = library.folder("one")
    write_rows(folder.preferences_jsonl, folder.preferences()[:2])
    assert len(examples(library, facets={4: "judge"})["lines"]) == 2


def test_what_has_not_changed_is_read_once(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("cai.report.serve.read_run", lambda folder: (read.append(folder.name), read_run(folder))[1])
    for _ in range(3):
        examples(library)
        respond(library, "/report?run=one")
    examples(library, run="two")
    assert read == ["one", "two"]


def test_a_run_that_was_trained_or_evaluated_since_is_read_again(library: Library) -> None:
    before = library.load(["one", "two"])
    assert library.load(["one", "two"]) is before
    metrics = library.folder("one").train / "1-dpo/metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8") + '{"step": 13, "loss": 0.1}\n', encoding="utf-8")
    assert library.load(["one", "two"]) is not before


def test_a_damaged_run_is_reported_and_the_list_stands(library: Library) -> None:
    library.folder("one").revisions_jsonl.write_text("{}\n", encoding="utf-8")
    library.folder("two").manifest_json.write_text("{", encoding="utf-8")
    found = respond(library, "/report?run=one")
    assert found.status == HTTPStatus.OK
    assert "revisions.jsonl:1" in found.body
    found = respond(library, "/report?run=two")
    assert (found.status, found.kind) == (HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain")
    assert "not valid JSON" in respond(library, "/").body


def test_names_and_texts_are_escaped_on_their_way(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>&\"'"
    write_run(tmp_path / name, say=lambda what, n: f"{HOSTILE} {what} {n}")
    library = Library(tmp_path)
    for target in ("/", "/report?" + urlencode({"run": name})):
        page = respond(library, target).body
        assert "<img" not in page and "<script>" not in page
        assert "&lt;img" in page


@pytest.fixture
def server(library: Library) -> Iterator[Server]:
    with open_server(library.runs, "127.0.0.1", 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server: Server, target: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[arg-type]
    connection.request(method, target, headers=headers)
    return connection.getresponse()


def test_it_listens_on_this_machine_alone_and_answers_to_its_name_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/").status == 200
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert ask(server, "/", Host=host).status == 200
    for host in ("evil.example", "localhost.evil.example", "192.168.0.1", ""):
        refused = ask(server, "/", Host=host)
        assert refused.status == 403
        assert b"two" not in refused.read()


@pytest.mark.parametrize(
    "host",
    [
        "[",
        "[::1",
        "localhost:x",
        "localhost:999999",
        "evil@localhost",
        "localhost/x",
        "localhost evil",
        "localhost\xe9",
        "[::1]x",
    ],
)
def test_a_malformed_host_is_refused(server: Server, host: str) -> None:
    assert ask(server, "/", Host=host).status == 400


@pytest.mark.parametrize(
    "request_line",
    [
        "GET http://[ HTTP/1.1",
        "GET / HTTP/9.9",
        "\x16\x03\x01",
        "GET /a b HTTP/1.1",
    ],
)
def test_a_malformed_request_is_answered_by_an_error_and_the_server_goes_on(
    server: Server, request_line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(f"{request_line}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert re.search(rb"(HTTP/1\.[01]|Error code:|:) (400|505)", answer), answer[:300]
    assert ask(server, "/").status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_two_hosts_are_refused(server: Server) -> None:
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]


def test_only_reading_is_understood(server: Server, library: Library) -> None:
    before = {path: path.stat().st_mtime_ns for path in library.runs.rglob("*")}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(server, "/report?run=one", method).status == 501
    head = ask(server, "/report?run=one", "HEAD")
    assert (head.status, head.read()) == (200, b"")
    assert ask(server, "/report?run=one&run=two").status == 200
    assert {path: path.stat().st_mtime_ns for path in library.runs.rglob("*")} == before


def test_answers_let_no_other_site_in(server: Server) -> None:
    headers = ask(server, "/report?run=one").headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_server_that_cannot_start_is_an_error_with_the_reason(tmp_path: Path, server: Server) -> None:
    with pytest.raises(CaiError, match="no such folder; expected a folder of runs"):
        open_server(tmp_path / "none", "127.0.0.1", 0)
    with pytest.raises(CaiError, match=r"cannot listen.*choose another --port"):
        open_server(tmp_path, "127.0.0.1", server.server_address[1])


def row_of(page: str, name: str) -> str:
    """The text of a run's line in a list."""
    [row] = re.findall(rf'<tr data-run="{re.escape(name)}">.*?</tr>', page, re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", row).split())


def test_a_run_under_way_is_listed_with_its_progress_and_a_dead_one_as_stopped(library: Library) -> None:
    folder = library.folder("one")
    assert "data-running" not in respond(library, "/").body
    folder.summary_json.unlink()
    folder.log.write_text(
        "2026-11-30T18:37:42   loading the model\n"
        "2026-11-30T18:37:57   feedback: 40/56 calls, 2.6 calls/s, 16/28 prompts, about 6.2 s left\n",
        encoding="utf-8",
    )
    with exclusive(folder.path):
        page = respond(library, "/").body
        assert "one running feedback: 40/56 calls, 2.6 calls/s, 16/28 prompts, about 6.2 s left (" in row_of(
            page, "one"
        )
        assert '<progress value="40" max="56" aria-label="one">' in page
        assert '<form id="runs" data-running>' in page
    page = respond(library, "/").body
    assert "one stopped feedback: 40/56 calls, 2.6 calls/s, 16/28 prompts 2026-11-30 18:37" in row_of(page, "one")
    assert "<progress" not in page and "data-running" not in page
    with folder.log.open("a", encoding="utf-8") as log:
        log.write("2026-11-30T18:38:01 error: <b>no</b> space left\n  on the second line\n")
    assert "one failed &lt;b&gt;no&lt;/b&gt; space left 2026-11-30 18:37" in row_of(respond(library, "/").body, "one")


def test_a_sweep_stands_side_by_side_with_what_varies_and_its_headline_metrics(
    tmp_path: Path, model_folder: Path
) -> None:
    file = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2]}, principles="first-n")
    _, members = make_sweep(file, [], tmp_path / "runs")
    run_all(file, [])
    library = Library(tmp_path / "runs")
    [entry] = re.findall('<a href="(/sweep[^"]*)">trial</a> <span class="soft">([^<]*)', respond(library, "/").body)
    assert entry == ("/sweep?sweep=trial", f"({len(members)} runs)")
    page = respond(library, "/sweep?sweep=trial")
    assert page.status == HTTPStatus.OK
    heads = re.findall('<th scope="col"[^>]*><button type="button">([^<]*)', page.body)
    assert heads == ["run", "state", "revise.rounds", "principles", *(metric.name for metric in SWEEP_METRICS)]
    summary = summary_metrics(library.folder("trial/rounds-2_first-4").summary() or {})
    shown = [metric.shown(summary[metric.key]) if metric.key in summary else "–" for metric in SWEEP_METRICS]
    assert row_of(page.body, "trial/rounds-2_first-4") == " ".join(["rounds-2_first-4 finished 2 first 4", *shown])
    assert shown[0] != "–"
    url = f"/report?{urlencode({'run': 'trial/rounds-2_first-4'})}"
    assert f'href="{url}"' in page.body and respond(library, url).status == HTTPStatus.OK
    for gone in ("rounds-1_first-4", "rounds-2_all"):
        shutil.rmtree(tmp_path / "runs/trial" / gone)
    index = json.loads((tmp_path / "runs/trial/sweep.json").read_text(encoding="utf-8"))
    for run in index["runs"]:
        if run["run"] == "rounds-2_all":
            run.update(state="failed", failed="<b>the judge</b> fails")
    (tmp_path / "runs/trial/sweep.json").write_text(json.dumps(index), encoding="utf-8")
    page = respond(library, "/sweep?sweep=trial")
    assert row_of(page.body, "trial/rounds-1_first-4") == "rounds-1_first-4 waiting 1 first 4"
    assert "failed &lt;b&gt;the judge&lt;/b&gt; fails 2 all" in row_of(page.body, "trial/rounds-2_all")
    assert 'value="trial/rounds-2_all"' not in page.body  # which cannot be compared


@pytest.mark.parametrize("name", ["nowhere", "..", "one", "", "../runs", "sweep/leave-one-out"])
def test_a_sweep_is_looked_up_by_its_name_and_damage_is_reported(library: Library, name: str) -> None:
    found = respond(library, "/sweep?" + urlencode({"sweep": name}))
    assert (found.status, found.kind) == (HTTPStatus.NOT_FOUND, "text/plain")
    damaged = respond(library, "/sweep?sweep=sweep")
    assert damaged.status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert "sweep.json: name: " in damaged.body
    assert "sweep.json: name: " in respond(library, "/").body


def test_an_index_shows_no_file_outside_its_sweep(library: Library) -> None:
    index = {"name": "sweep", "runs": [{"run": "../one", "varies": {"seed": 0}, "principles": {"how": "all"}}]}
    (library.runs / "sweep/sweep.json").write_text(json.dumps(index), encoding="utf-8")
    assert row_of(respond(library, "/sweep?sweep=sweep").body, "sweep/../one") == "../one waiting 0"
