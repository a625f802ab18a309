"""Every fault of a server is tried again, or a counted failure, or a clear error: never a hang, never a stored answer."""

import asyncio
import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

from cai.config.errors import CaiError
from cai.data.records import Message, Skipped
from cai.inference import endpoint_pool
from cai.inference.cache import Cache
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.models import Model, Server
from cai.inference.scheduler import Scheduler, Stage, open_model
from cai.runs.pipeline import execute
from tests.cli.test_cli import cai
from tests.conftest import ROOT, write_workspace
from tests.faults import reliability
from tests.faults.faulty_server import (
    FAULTS,
    FINAL,
    HARMLESS,
    JUDGE_FAULTS,
    LEAKED,
    REFUSED,
    RETRIED,
    TEXT_FAULTS,
    FaultyServer,
    Mode,
    faulty_server,
    raw,
    with_key,
)

KEY, KEY_PART = "sk-planted-0123456789", "planted"
REQUESTS = 4  # fewer than FAILURES_IN_A_ROW, so that each of them is a counted failure
SOON = 60.0  # seconds, beyond which a run hangs
SLOW = ("hangs", "hangs in a body", "drips")
PATIENCE: dict[Mode, float] = {
    "first": 2.0,
    "every other": 0.2,
    "always": 0.1,
}  # seconds for an answer of a slow server
CASES = [
    (fault, step, mode)
    for step, faults in {
        "generate": RETRIED | TEXT_FAULTS | REFUSED | FINAL | HARMLESS,
        "judge": RETRIED | JUDGE_FAULTS | REFUSED | FINAL | HARMLESS,
    }.items()
    for fault in faults
    for mode in get_args(Mode)
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_pool, "BACK_OFF", 0.001)
    monkeypatch.setattr(endpoint_pool, "LONGEST_BACK_OFF", 0.01)
    monkeypatch.setattr(endpoint_pool, "LARGEST_BODY", 2**20)
    monkeypatch.setenv("PLANTED", KEY)


def requests(step: str) -> list[Generate | Choose]:
    turns = [[Message(role="user", content=f"question {number}")] for number in range(REQUESTS)]
    if step == "generate":
        return [Generate(messages, 8, 0.0, 0) for messages in turns]
    start = Message(role="assistant", content="Answer")
    return [Choose([*messages, start], (" A", " B")) for messages in turns]


def sound(step: str) -> list[Any]:
    if step == "generate":
        return [(f"answer to question {number}", "stop") for number in range(REQUESTS)]
    return [pytest.approx([math.log(0.25), math.log(0.75)])] * REQUESTS


def ask(server: FaultyServer, step: str, cache: Path, timeout: float = 30.0) -> tuple[dict[int, Any], list[Skipped]]:
    """All requests, one after the other; the answers by their number, and the failures."""
    items = list(enumerate(requests(step)))

    async def run() -> tuple[dict[int, Any], list[Skipped]]:
        with closing(Cache(cache)) as store:
            settings = EngineConfig(concurrency=1)
            scheduler = Scheduler(settings, store, None, lambda *_: ServerEngine(target, "f", 1, timeout))
            engine = scheduler.engine(target)

            async def one(item: tuple[int, Generate | Choose]) -> Any:
                request = item[1]
                return await (engine.choose(request) if isinstance(request, Choose) else engine.generate(request))

            stage, answers = Stage("asking", [engine], REQUESTS, REQUESTS), {}
            try:
                async for item, result in scheduler.each(stage, items, one, lambda item: str(item[0])):
                    answers[item[0]] = (result.text, result.finish) if isinstance(result, Completion) else result
            finally:
                await engine.close()
            return answers, scheduler.skipped

    target = Server.at(server.url, "m", "PLANTED")
    return asyncio.run(asyncio.wait_for(run(), SOON))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "step", "mode"), CASES)
def test_a_fault_is_retried_or_counted_or_a_clear_error(
    fault: str, step: str, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "every other":  # on a busy machine a sound answer may take longer than its patience
        monkeypatch.setattr(endpoint_pool, "SLOW_TRIES", 20)
    expected, answers, failures, error = sound(step), dict[int, Any](), list[Skipped](), ""
    with faulty_server(fault, mode) as server:
        try:
            timeout = PATIENCE[mode] if fault in SLOW else 30.0
            answers, failures = ask(server, step, tmp_path / "cache.sqlite", timeout)
        except CaiError as stopped:
            error = str(stopped)
        for number, given in answers.items():
            assert given == expected[number]
        for text in (error, *(row.reason for row in failures)):
            assert KEY_PART not in text
            assert "secret" not in text
        if fault in HARMLESS or (fault not in FINAL and fault not in REFUSED and mode != "always"):
            assert len(answers) == REQUESTS
        elif fault in FINAL or (fault in JUDGE_FAULTS and "tokens" not in fault):
            assert error.startswith(f"model '{server.url}#m': ")
        elif mode == "always":
            assert len(failures) == REQUESTS
            assert all(row.failed and row.reason for row in failures)
        else:  # a refusal of some requests
            assert len(answers) + len(failures) == REQUESTS
        server.mended = True
        answers, failures = ask(server, step, tmp_path / "cache.sqlite")  # what is stored is sound
        assert [answers[number] for number in range(REQUESTS)] == expected
        assert not failures
    assert KEY.encode() not in bytes_of(tmp_path)


def test_the_faults_are_many_and_each_is_played() -> None:
    assert {fault for fault, _, _ in CASES} == set(FAULTS)
    assert len(FAULTS) >= 98
    page = " ".join(reliability.PAGE.read_text(encoding="utf-8").split())
    distinct = len({(fault, step) for fault, step, _ in CASES})
    assert f"{len(FAULTS)} faults of a server; with the call that meets them, {distinct}, each" in page


def test_a_server_that_is_down_ends_the_command_before_all_rows_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_pool, "FAILURES_IN_A_ROW", 2)
    with (
        faulty_server("status 503", "always") as server,
        pytest.raises(CaiError, match="failed on 2 requests in a row"),
    ):
        ask(server, "judge", tmp_path / "cache.sqlite")


@pytest.fixture
def judging(tmp_path: Path) -> list[object]:
    """Options of `cai judge` and `cai judge-eval` for two pairs, but for the judge."""
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "--data", tmp_path / "pairs.jsonl", "--constitution", ROOT / "constitutions/plain.yaml",
        "--set", "principles=1", "--key-env", "PLANTED", "--out", tmp_path / "out", "--runs", tmp_path / "runs",
    ]  # fmt: skip


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("command", ["judge", "judge-eval"])
def test_failed_rows_are_status_1_with_the_command_that_asks_again(
    judging: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setattr(endpoint_pool, "UNUSABLE_TRIES", 1)
    with faulty_server("html", "first") as server:
        assert cai(monkeypatch, command, "--judge", server.url, *judging) == 1
        error = capsys.readouterr().err
        assert "1 row failed: 1 × the server's response is not JSON; it begins with: <html>" in error
        assert f"To ask for them again, run the same command:\n  cai {command} --judge {server.url} " in error
        assert cai(monkeypatch, command, "--judge", server.url, *judging) == 0
        assert "failed" not in capsys.readouterr().err


def test_a_server_that_refuses_everything_is_no_success(
    judging: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_server("status 400", "always") as server:
        assert cai(monkeypatch, "judge", "--judge", server.url, *judging) == 1
    assert "2 rows failed: 2 × the server refuses the request: fault 400" in capsys.readouterr().err


def test_a_key_is_in_no_byte_of_what_a_command_writes(
    judging: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_server("sends the key back", "always") as server:
        status = cai(monkeypatch, "judge", "--judge", server.url, *judging)
    captured = capsys.readouterr()
    assert status == 1
    assert (
        "2 rows failed: 2 × the server answers with status 500: the server sends the key back: Bearer [key]"
        in captured.err
    )
    assert "To ask for them again, run the same command:\n  cai judge --judge" in captured.err
    assert KEY not in captured.out + captured.err
    assert KEY.encode() not in bytes_of(tmp_path)


def models(*names: str) -> dict[str, object]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


LISTS = {
    "down": with_key(lambda handler, key: handler.send({"error": {"message": f"{LEAKED}{key}"}}, 503)),
    "refused": with_key(lambda handler, key: handler.send({"error": {"message": f"{LEAKED}{key}"}}, 401)),
    "cut": with_key(lambda handler, key: handler.send({"error": {"message": f"{'x' * 280} {key}"}}, 503)),
    "no list": with_key(lambda handler, key: handler.send({"models": key})),
    "its only model": with_key(lambda handler, key: handler.send(models(key))),
    "models": with_key(lambda handler, key: handler.send(models("m", f"near {key}", f"far {key}"))),
    "no HTTP": with_key(lambda handler, key: raw(key.encode())(handler)),
}


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("asked", ["endpoints", "an address", "an address with a name"])
def test_a_key_in_a_list_of_models_is_in_no_byte(
    judging: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    listed: str,
    asked: str,
) -> None:
    with faulty_server("plain text for JSON", "always") as server:
        server.lists = LISTS[listed]
        judge = {"endpoints": "m", "an address": server.url, "an address with a name": f"{server.url}#near"}[asked]
        options = ["--set", f"engine.endpoints=['{server.url}']"] if asked == "endpoints" else []
        assert cai(monkeypatch, "judge", "--judge", judge, *judging, *options) == 2
    captured = capsys.readouterr()
    assert server.url in captured.err
    assert KEY_PART not in captured.out + captured.err
    assert KEY_PART.encode() not in bytes_of(tmp_path)


def test_a_stand_in_for_a_key_may_be_in_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "answer")
    with faulty_server("plain text for JSON", "always") as server:
        answers, failures = ask(server, "generate", tmp_path / "cache.sqlite")
    assert list(answers.values()) == sound("generate")
    assert not failures


def test_a_run_and_its_report_have_the_key_in_no_byte(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        return open_model(model, fingerprint, settings) if isinstance(model, Server) else ScriptedEngine(fingerprint)

    monkeypatch.setattr(execute, "__defaults__", (False, opened))
    monkeypatch.setattr(endpoint_pool, "FAILURES_IN_A_ROW", 100)
    with faulty_server("sends the key back", "always") as server:
        judge = f"judge: {{model: '{server.url}', key_env: PLANTED, principles: 1}}\n"
        run_file = write_workspace(tmp_path, model_folder, prompts=2, extra=judge)
        options = ["--runs", tmp_path / "runs", "--set", "prompts.holdout=0"]
        assert cai(monkeypatch, "run", run_file, *options) == 1
        assert cai(monkeypatch, "report", "test", "--runs", tmp_path / "runs") == 0
    captured = capsys.readouterr()
    assert "[key]" in captured.err
    assert b"[key]" in bytes_of(tmp_path / "runs")
    assert KEY not in captured.out + captured.err
    assert KEY.encode() not in bytes_of(tmp_path)


def test_a_password_in_an_address_is_refused_before_anything_is_written(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = f"judge: {{model: 'http://me:{KEY}@localhost/v1'}}\n"
    run_file = write_workspace(tmp_path, model_folder, prompts=2, extra=extra)
    assert cai(monkeypatch, "run", run_file, "--runs", tmp_path / "runs") == 2
    captured = capsys.readouterr()
    assert "the address holds a password" in captured.err
    assert KEY not in captured.out + captured.err
    assert not list((tmp_path / "runs").rglob("*"))
