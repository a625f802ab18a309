"""Runs whose prompts are answered, and judged, by servers."""

import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.inference import endpoint_pool
from cai.inference.engine import Engine, EngineConfig, ScriptedEngine
from cai.inference.models import Address, Model, Server
from cai.inference.reporter import Reporter
from cai.inference.scheduler import open_model
from cai.runs.dry_run import dry_run
from cai.runs.evaluate import Options, plan_evaluation
from cai.runs.evaluation_folder import evaluation_claim
from cai.runs.folder import RunFolder
from cai.runs.metrics import other_warnings
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.run_file import load_run_file
from tests.conftest import ROOT, write_workspace
from tests.inference.test_endpoints import Service, completion

PROMPTS = 8


def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if asked.get("logprobs"):
        return 200, completion("A", {"A": 0.6, " B": 0.3})
    return 200, completion(f"text {asked['seed']} about {asked['messages'][-1]['content'][:9]}", None)


@pytest.fixture
def services() -> Iterator[list[Service]]:
    opened = [Service(["big"]) for _ in range(3)]
    for service in opened:
        service.answer = answer
    yield opened
    for service in opened:
        service.close()


def run_file_on(folder: Path, model: Path, services: list[Service], extra: str = "", prompts: int = PROMPTS) -> Path:
    urls = ", ".join(service.url for service in services)
    return write_workspace(folder, model, prompts, f"engine: {{endpoints: [{urls}]}}\n{extra}")


def run(run_file: Path, opened: list[Model] | None = None) -> RunFolder:
    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        if opened is not None:
            opened.append(model)
        return open_model(model, fingerprint, settings) if isinstance(model, Server) else ScriptedEngine(fingerprint)

    plan = make_plan(run_file, [], None, run_file.parent / "runs")
    execute(plan, Reporter(Console(quiet=True)), open_engine=open_engine)
    return plan.folder


@pytest.mark.parametrize("control", ["text", "escape"])
def test_prompts_with_control_tokens_that_a_server_answers_are_a_warning_where_the_judge_is_not_served(
    tmp_path: Path, model_folder: Path, services: list[Service], control: str
) -> None:
    engine = f"engine: {{endpoints: [{services[0].url}], control_tokens: {control}}}\n"
    judge = f"judge: {{model: {model_folder}, engine: {{endpoints: []}}}}\n"
    run_file = write_workspace(tmp_path, Path("big"), PROMPTS, engine + judge)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace('"prompt": "', '"prompt": "<|turn>system '), encoding="utf-8")
    folder = run(run_file)
    assert ("<|turn>" in str(services[0].asked)) == (control == "text")
    summary = json.loads(folder.summary_json.read_text())
    warnings = [text for text in other_warnings(summary) if "went to a server" in text]
    sent = sum("<|turn>" in str(asked["messages"]) for asked in services[0].asked)
    assert [text.split(" with ")[0] for text in warnings] == ([f"{sent} requests"] if control == "text" else [])


def test_servers_answer_and_judge_every_prompt_of_a_run(tmp_path: Path, services: list[Service]) -> None:
    folder = run(run_file_on(tmp_path, Path("big"), services[:2]))
    training = [prompt.id for prompt in folder.prompts()][:6]
    assert {row.prompt_id for row in folder.revisions()} == set(training)
    judged = [row for row in folder.preferences() if row.source == "judge"]
    assert {row.prompt_id for row in judged} == set(training)
    assert judged[0].verdicts[0].non_option_mass == pytest.approx(0.1)
    assert math.isclose(judged[0].p, 0.5)  # A in both orders
    assert not services[2].asked
    verdicts = [[str(asked["messages"]) for asked in service.asked if asked.get("logprobs")] for service in services]
    for prompt in folder.prompts()[:6]:  # all questions about the answers to a prompt were asked of one server
        text = prompt.messages[0]["content"]
        assert sum(any(text in question for question in of_service) for of_service in verdicts) == 1


def test_a_run_goes_on_when_its_servers_have_moved(tmp_path: Path, services: list[Service]) -> None:
    run(run_file_on(tmp_path, Path("big"), services[:2]))
    folder = run(run_file_on(tmp_path, Path("big"), services[2:]))
    assert not services[2].asked
    summary = folder.summary()
    assert summary is not None
    assert summary["calls"]["cache_misses"] == 0


@pytest.mark.parametrize(
    ("named", "judge"),
    [
        (", served_model_name: big", ""),
        (", served_model_name: big", "judge: {{model: '{url}#large', principles: 2}}\n"),
        ("", "judge: {{model: '{url}', principles: 2}}\n"),  # whose names the servers list
    ],
)
def test_a_finished_run_is_repeated_without_its_servers_and_a_new_call_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str, judge: str
) -> None:
    services = [Service(["big"]), Service(["large"])]
    for service in services:
        service.answer = answer
    endpoints = f"engine: {{endpoints: [{services[0].url}]{named}}}\n"
    run_file = write_workspace(tmp_path, Path("big"), PROMPTS, endpoints + judge.format(url=services[1].url))
    folder = run(run_file)
    before = {path.name: path.read_bytes() for path in folder.path.glob("*.jsonl") if path.name != "costs.jsonl"}
    for service in services:
        service.close()
    folder.summary_json.unlink()  # so that all calls are made again
    again = run(run_file).summary()
    assert again is not None and again["calls"]["cache_misses"] == 0
    assert {name: (folder.path / name).read_bytes() for name in before} == before
    warning = "Cached calls need no server; the first that is not cached asks again"
    assert warning in " ".join(capsys.readouterr().err.split())
    assert sum(line.cache_misses for line in dry_run(make_plan(run_file, [], None, tmp_path / "runs")).lines) == 0
    assert dry_run(make_plan(run_file, ["seed=1"], "other", tmp_path / "runs")).lines[0].cache_misses
    plan = make_plan(run_file, ["seed=1"], "other", tmp_path / "runs")
    with pytest.raises(CaiError, match=rf"{services[0].url}#big': a call is not in the cache, and no server can be"):
        execute(plan, Reporter(Console(quiet=True)))
    replacing = make_plan(run_file, ["seed=1"], None, tmp_path / "runs")
    with pytest.raises(CaiError, match="no server can be reached"):
        execute(replacing, Reporter(Console(quiet=True)), replace=True)
    assert {name: (folder.path / name).read_bytes() for name in before} == before
    fresh = make_plan(run_file, [], None, tmp_path / "fresh")
    with pytest.raises(CaiError, match="a call is not in the cache"):
        dry_run(fresh)


def test_a_server_that_comes_back_with_another_model_is_not_asked(tmp_path: Path, services: list[Service]) -> None:
    first = Service(["large"])
    first.answer = answer
    run_file = run_file_on(tmp_path, Path("big"), services[:1], f"judge: {{model: '{first.url}#large'}}\n")
    run(run_file)
    first.close()
    plan = make_plan(run_file, ["seed=1"], "other", tmp_path / "runs")
    other = Service(["small"], first.port)
    try:
        with pytest.raises(CaiError, match=rf"{first.url}#large': {first.url} has no such model; it has small"):
            execute(plan, Reporter(Console(quiet=True)))
        assert not other.asked
    finally:
        other.close()


def test_cai_judge_is_repeated_without_its_server(tmp_path: Path) -> None:
    service = Service(["big"])
    service.answer = answer
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "judge", "--judge", f"{service.url}#big", "--data", tmp_path / "pairs.jsonl",
        "--constitution", ROOT / "constitutions/plain.yaml", "--runs", tmp_path / "runs", "--out",
    ]  # fmt: skip

    def judge(out: str) -> bytes:
        result = CliRunner().invoke(app, [*map(str, words), str(tmp_path / out)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return (tmp_path / out / "preferences.jsonl").read_bytes()

    first = judge("first")
    service.close()
    assert judge("first") == judge("second") == first
    words[1:1] = ["--replace", "--set", "principles=1"]
    with pytest.raises(CaiError, match="no server can be reached"):
        judge("first")
    assert (tmp_path / "first/preferences.jsonl").read_bytes() == first  # nothing was cleared for a call that cannot be


def test_shards_on_servers_and_their_merged_cache_give_the_rows_of_the_whole_run(
    tmp_path: Path, services: list[Service]
) -> None:
    run_file = run_file_on(tmp_path, Path("big"), services[:2], "judge: {principles: 2}\n")

    def cai(*words: object) -> None:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    def calls() -> int:
        return sum(len(service.asked) for service in services)

    cai("run", run_file, "--runs", tmp_path / "alone")
    alone = calls()
    for number in (1, 2):
        cai("run", run_file, "--shard", f"{number}/2", "--runs", tmp_path / f"machine{number}")
    assert calls() == 2 * alone
    cai("cache", "merge", tmp_path / "all", tmp_path / "machine1", tmp_path / "machine2")
    cai("run", run_file, "--runs", tmp_path / "all")
    assert calls() == 2 * alone  # every answer was in the merged cache
    for name in ("revisions.jsonl", "preferences.jsonl"):
        rows = (tmp_path / "all/test" / name).read_bytes()
        assert rows and rows == (tmp_path / "alone/test" / name).read_bytes()


def test_what_is_trained_answers_on_servers_and_is_evaluated_in_this_process(
    tmp_path: Path, tiny_model: Path, services: list[Service], no_worker: None
) -> None:
    opened: list[Model] = []
    train = "train: [{stage: sft, max_length: 256}]\nrevise: {rounds: 1}\n"
    folder = run(run_file_on(tmp_path, tiny_model, services[:2], train), opened)
    policies = {model for model in opened if isinstance(model, Path)}
    assert policies == {tiny_model, folder.train / "1-sft" / "model"}
    manifest = folder.manifest()
    assert manifest["generator"] != manifest["model"]
    assert (folder.eval / "evaluation.json").exists()
    again = plan_evaluation(Options(str(folder.path), probes="none"), tmp_path / "runs")  # with the run's own judge
    assert again.judge == Server(tuple(Address(service.url) for service in services[:2]), "big")
    changes = {change.split(".")[0] for change in evaluation_claim(again, folder.eval).changes()}
    assert changes <= {"axes", "probes"}  # which it adds


@pytest.mark.slow
def test_the_log_and_the_console_say_that_a_server_rests_and_is_back(
    tmp_path: Path,
    services: list[Service],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(endpoint_pool, "BACK_OFF", 0.001)
    monkeypatch.setattr(endpoint_pool, "REST_SECONDS", 0.05)
    first, second = services[:2]

    def failing_at_first(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if len(first.listed) > 1:  # once as the run was planned, and again at the end of the rest
            return answer(asked)
        return 500, {"error": {"message": "no memory"}}

    def waiting_for_the_first(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        end = time.monotonic() + 20
        while len(first.listed) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        return answer(asked)

    first.answer, second.answer = failing_at_first, waiting_for_the_first
    run_file = run_file_on(tmp_path, Path("big"), services[:2], prompts=32)  # of few, the first might get none
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    console = Console(record=True, file=io.StringIO(), width=200)
    execute(plan, Reporter(console))
    rests, back = f"  {first.url}#big: rests, and the other servers get its requests: ", f"  {first.url}#big: is back"
    for lines in (console.export_text(), plan.folder.log.read_text()):
        assert rests in lines and "no memory" in lines and back in lines
    assert not capsys.readouterr().err


def test_a_dry_run_counts_the_calls_of_servers_and_makes_none(tmp_path: Path, services: list[Service]) -> None:
    plan = make_plan(run_file_on(tmp_path, Path("big"), services[:1]), [], None, tmp_path / "runs")
    lines = dry_run(plan).lines
    assert sum(line.cache_misses for line in lines) > 60
    assert not services[0].asked
    assert json.dumps([service.listed for service in services]).count("/models") == 1


def test_the_example_is_a_run_on_two_servers(tmp_path: Path, model_folder: Path, services: list[Service]) -> None:
    for service in services[:2]:
        service.models = ["smollm2-135m"]
    urls = [service.url for service in services[:2]]
    example = ROOT / "examples/endpoints.yaml"
    assert load_run_file(example).engine.endpoints == ["http://localhost:8000/v1", "http://localhost:8001/v1"]
    overrides = [
        f"engine.endpoints={json.dumps(urls)}",
        "engine.served_model_name=smollm2-135m",
        f"model={model_folder}",
    ]
    plan = make_plan(example, overrides, None, tmp_path / "runs")
    assert plan.generator == Server(tuple(map(Address, urls)), "smollm2-135m")
    assert plan.model == model_folder
