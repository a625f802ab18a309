"""Every fault of an engine in a run is a counted failure or a clear error: never a hang, never a stored bad answer."""

import asyncio
import dataclasses
import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cai.cli import interrupts
from cai.config.errors import CaiError, RequestRefused
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.models import Model
from cai.inference.scheduler import OpenEngine, open_model
from cai.runs.pipeline import execute
from tests.cli.test_cli import cai
from tests.conftest import write_workspace
from tests.inference.fake_vllm import FakeLLM, FakeTokenizer, install

ROWS = ("revisions.jsonl", "preferences.jsonl")
SOON = 60.0  # seconds, beyond which a run hangs


class Ends(NamedTuple):
    """How a run with a fault ends: its exit status, and what it prints."""

    status: int
    says: str


FAILED = "failed: "
UNEXPECTED = "error: unexpected "


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def changing(**fields: Any) -> Callable[[Completion], Any]:
    return lambda completion: dataclasses.replace(completion, **fields)


GENERATE: dict[str, tuple[Callable[[Completion], Any], Ends]] = {
    "raises": (raising(RuntimeError("boom")), Ends(1, f"{UNEXPECTED}RuntimeError: boom")),
    "out of memory": (raising(MemoryError()), Ends(1, f"{UNEXPECTED}MemoryError")),
    "names its fault": (raising(CaiError("engine: broken, mend it")), Ends(2, "error: engine: broken, mend it")),
    "refuses": (raising(RequestRefused("too long")), Ends(1, FAILED)),
    "cancels": (raising(asyncio.CancelledError()), Ends(1, "the engine cancelled the request")),
    "is interrupted": (raising(KeyboardInterrupt()), Ends(130, "")),
    "returns nothing": (lambda _: None, Ends(1, "")),
    "text of None": (changing(text=None), Ends(1, "NoneType in place of a text")),
    "half a surrogate pair": (changing(text="half \ud83d"), Ends(1, "half of a surrogate pair")),
    "unknown finish": (changing(finish="error"), Ends(1, "ended with 'error'")),
    "negative tokens": (changing(completion_tokens=-1), Ends(1, "counted -1 tokens")),
    "tokens of None": (changing(prompt_tokens=None), Ends(1, "counted None tokens")),
}
"""What becomes of an answer, at the first of two prompts, and how that ends."""

CHOOSE: dict[str, tuple[Callable[[list[float]], Any], Ends]] = {
    "raises": (raising(RuntimeError("boom")), Ends(1, f"{UNEXPECTED}RuntimeError: boom")),
    "refuses": (raising(RequestRefused("too long")), Ends(1, FAILED)),
    "cancels": (raising(asyncio.CancelledError()), Ends(1, "the engine cancelled the request")),
    "NaN": (lambda found: [math.nan, *found[1:]], Ends(1, "nan as a log-probability")),
    "infinite": (lambda found: [math.inf, *found[1:]], Ends(1, "inf as a log-probability")),
    "minus infinite": (lambda found: [-math.inf, *found[1:]], Ends(1, "-inf as a log-probability")),
    "positive": (lambda found: [0.5, *found[1:]], Ends(1, "0.5 as a log-probability")),
    "a text": (lambda found: ["-1", *found[1:]], Ends(1, "'-1' as a log-probability")),
    "too few options": (lambda found: found[1:], Ends(1, "1 log-probabilities for 2 options")),
    "too many options": (lambda found: [*found, -3.0], Ends(1, "3 log-probabilities for 2 options")),
    "no options": (lambda found: [], Ends(1, "0 log-probabilities for 2 options")),
}


class FaultyEngine(ScriptedEngine):
    """A scripted engine with a fault in what it answers about the first prompt."""

    generated: Callable[[Completion], Any] = staticmethod(lambda completion: completion)
    chosen: Callable[[list[float]], Any] = staticmethod(lambda found: found)

    async def generate(self, request: Generate) -> Completion:
        completion = await super().generate(request)
        changed: Completion = self.generated(completion) if concerns_first(request) else completion
        return changed

    async def choose(self, request: Choose) -> list[float]:
        found = await super().choose(request)
        changed: list[float] = self.chosen(found) if concerns_first(request) else found
        return changed


def concerns_first(request: Generate | Choose) -> bool:
    return any("number 0" in message["content"] for message in request.messages)


def words(request: Generate) -> str:
    return f"{request.seed} words that answer {request.messages[0]['content'][-9:]}"


def run(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, opened: OpenEngine, *options: str) -> int:
    """`cai run` with two prompts on an engine, in the time that a run without a hang takes; its exit status."""
    folder.mkdir(exist_ok=True)
    run_file = write_workspace(folder, model, prompts=2)
    monkeypatch.setattr(execute, "__defaults__", (False, opened))
    monkeypatch.setattr(interrupts, "leave", sys.exit)  # a thread of vLLM may still be stuck in this process
    begun = time.monotonic()
    few = ["--set", "revise.rounds=1", "--set", "judge.principles=1", "--set", "prompts.holdout=0"]
    status = cai(monkeypatch, "run", run_file, "--runs", folder / "runs", *few, *options)
    assert time.monotonic() - begun < SOON
    return status


def rows(folder: Path) -> list[str]:
    return [(folder / "runs/test" / name).read_text(encoding="utf-8") for name in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "fault"), [*(("generate", fault) for fault in GENERATE), *(("choose", fault) for fault in CHOOSE)]
)
def test_a_fault_ends_in_words_and_leaves_nothing_bad_in_the_cache(
    step: str,
    fault: str,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, ends = GENERATE[fault] if step == "generate" else CHOOSE[fault]
    mended = False

    def opened(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        engine = FaultyEngine("same", words)
        if not mended:
            setattr(engine, "generated" if step == "generate" else "chosen", change)
        return engine

    assert run(tmp_path / "faulty", model_folder, monkeypatch, opened) == ends.status
    printed = capsys.readouterr()
    assert ends.says in printed.err
    assert "Traceback" not in printed.out + printed.err
    mended = True
    assert run(tmp_path / "faulty", model_folder, monkeypatch, opened) == 0  # the same command asks again
    assert run(tmp_path / "sound", model_folder, monkeypatch, opened) == 0
    assert rows(tmp_path / "faulty") == rows(tmp_path / "sound")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (CaiError("model: no such folder"), Ends(2, "error: model: no such folder")),
        (RuntimeError("no device"), Ends(1, f"{UNEXPECTED}RuntimeError: no device")),
        (MemoryError(), Ends(1, f"{UNEXPECTED}MemoryError")),
    ],
)
def test_an_engine_that_cannot_be_opened(
    error: Exception,
    ends: Ends,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path / "run", model_folder, monkeypatch, raising(error)) == ends.status
    assert ends.says in capsys.readouterr().err


def test_an_empty_text_is_an_answer_that_makes_no_pair(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any) -> Engine:
        engine = FaultyEngine("same", words)
        engine.generated = changing(text="", completion_tokens=0)
        return engine

    assert run(tmp_path / "run", model_folder, monkeypatch, opened) == 0
    skipped = (tmp_path / "run/runs/test/skipped.jsonl").read_text(encoding="utf-8")
    assert "revision empty" in skipped
    assert '"failed":true' not in skipped


def test_a_run_that_produces_no_row_is_no_success(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: Any) -> Engine:
        engine = FaultyEngine("same", words)
        engine.generated = raising(RequestRefused("too long", retryable=False))
        return engine

    # Of two prompts one is answered: status 0. Then the other one alone.
    assert run(tmp_path / "some", model_folder, monkeypatch, opened) == 0
    assert "no rows" not in capsys.readouterr().err
    assert run(tmp_path / "none", model_folder, monkeypatch, opened, "--set", "prompts.limit=1") == 1
    folder = tmp_path / "none/runs/test"
    [line] = [line for line in capsys.readouterr().err.splitlines() if "no rows" in line]
    assert line == f"{folder}: no rows were produced; all were skipped: 1 × too long"
    assert run(tmp_path / "none", model_folder, monkeypatch, opened, "--set", "prompts.limit=1") == 1  # again


def long_prompts(prompt: list[int]) -> None:
    if len(prompt) > 50:
        raise ValueError("prompt too long")


def no_logprobs(output: Any) -> None:
    if output.outputs[0].logprobs:
        output.outputs[0].logprobs = None


def nan_logprobs(output: Any) -> None:
    for by_token in output.outputs[0].logprobs or []:
        for logprob in by_token.values():
            logprob.logprob = math.nan


def ended_early(output: Any) -> None:
    output.outputs[0].finish_reason = "abort"


def forget(llm: FakeLLM) -> None:
    llm.running.clear()


def stand_still(llm: FakeLLM) -> None:
    llm.moves = False


blocked = threading.Event()


def block(llm: FakeLLM) -> None:
    blocked.wait(SOON)


STALL = "vLLM stalled: no token for 0.3 s. In flight: "
VLLM: dict[str, tuple[Callable[[], FakeLLM], Ends]] = {
    "load fails": (raising(OSError("no weights")), Ends(2, "vLLM stopped: OSError: no weights")),
    "load runs out of memory": (raising(MemoryError()), Ends(2, "lower engine.concurrency")),
    "no chat template": (lambda: FakeLLM(tokenizer=FakeTokenizer(ValueError("no template"))), Ends(1, "no template")),
    "requests refused": (lambda: FakeLLM(on_add=long_prompts), Ends(1, "vLLM refuses the request: ValueError")),
    "dies at a request": (lambda: FakeLLM(on_add=raising(RuntimeError("dead"))), Ends(2, "vLLM stopped: RuntimeError")),
    "dies at a step": (lambda: FakeLLM(on_step=raising(RuntimeError("dead"))), Ends(2, "vLLM stopped: RuntimeError")),
    "exits at a step": (lambda: FakeLLM(on_step=raising(SystemExit(3))), Ends(2, "vLLM stopped: SystemExit: 3")),
    "runs out of memory": (lambda: FakeLLM(on_step=raising(RuntimeError("CUDA out of memory"))), Ends(2, "lower eng")),
    "loses requests": (lambda: FakeLLM(on_step=forget), Ends(2, "without an answer")),
    "blocks": (lambda: FakeLLM(on_step=block), Ends(2, STALL)),
    "stands still": (lambda: FakeLLM(on_step=stand_still), Ends(2, STALL)),
    "ends requests early": (lambda: FakeLLM(spoil=ended_early), Ends(1, "vLLM ended the request early: abort")),
    "no log-probabilities": (lambda: FakeLLM(spoil=no_logprobs), Ends(1, "vLLM's output holds no answer")),
    "NaN": (lambda: FakeLLM(spoil=nan_logprobs), Ends(1, "nan as a log-probability")),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", VLLM)
def test_a_fault_of_vllm_ends_in_words(
    fault: str,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load, ends = VLLM[fault]
    install(monkeypatch, load)
    blocked.clear()
    by_stall = ["--set", "engine.stall_minutes=0.005"]
    try:
        status = run(
            tmp_path / "run", model_folder, monkeypatch, open_model, *by_stall, "--set", "revise.critique=false"
        )
    finally:
        blocked.set()
    printed = capsys.readouterr()
    assert ends.says in printed.err
    assert status == ends.status
    assert "Traceback" not in printed.out + printed.err
    install(monkeypatch, FakeLLM)
    assert run(tmp_path / "run", model_folder, monkeypatch, open_model, "--set", "revise.critique=false") == 0


def test_a_sweep_runs_finished_runs_again_for_their_failed_rows_on_request(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = True

    def opened(*_: Any) -> Engine:
        engine = FaultyEngine("same", words)
        if broken:
            engine.chosen = raising(RequestRefused("too long"))
        return engine

    monkeypatch.setattr(execute, "__defaults__", (False, opened))
    write_workspace(tmp_path, model_folder, prompts=2)
    (tmp_path / "sweep.yaml").write_text("name: s\nrun: run.yaml\ngrid: {judge.principles: [1, 2]}\n", encoding="utf-8")
    command = ["sweep", tmp_path / "sweep.yaml", "--runs", tmp_path / "runs", "--set", "prompts.holdout=0"]
    assert cai(monkeypatch, *command) == 1
    assert "run the same command with --retry-failed:\n  cai sweep " in capsys.readouterr().err
    broken = False
    assert cai(monkeypatch, *command) == 1  # finished, and not run again
    assert cai(monkeypatch, *command, "--retry-failed") == 0
    assert cai(monkeypatch, *command) == 0
