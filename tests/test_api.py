"""The Python API, on scripted models and, for training, the tiny one."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cai
from cai.api import run_async
from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message, Preference, Prompt, Ranking, Revision
from cai.inference.engine import Choose, Generate, ScriptedEngine
from tests.compare.made import make_run, principles
from tests.conftest import ROOT, scripted

PROMPTS = ["How do I boil an egg?", [Message(role="user", content="Why do cats purr?")], {"id": "c", "prompt": "Why?"}]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    cai.close()


def test_importing_cai_loads_nothing_heavy() -> None:
    heavy = "('torch', 'transformers', 'pyarrow', 'pydantic', 'rich', 'yaml')"
    code = f"import sys, cai; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(cai.__all__) <= set(dir(cai))
    with pytest.raises(AttributeError, match="no attribute 'revize'"):
        _ = cai.revize  # type: ignore[attr-defined]


@pytest.mark.slow
def test_importing_the_api_loads_no_torch() -> None:
    code = "import sys; from cai import revise, train; print([n for n in ('torch', 'pyarrow') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_constitution_loads_by_file_or_shipped_name(tmp_path: Path) -> None:
    plain = cai.load_constitution("plain")
    assert plain == cai.load_constitution("constitutions/plain.yaml")
    Path("mine.yaml").write_text("name: mine\nprinciples: [{id: a, critique: b, revision: c, judge: d}]\n")
    assert cai.load_constitution(Path("mine.yaml")).name == "mine"
    with pytest.raises(CaiError, match="plaim: no such file"):
        cai.load_constitution("plaim")


def test_revise_returns_a_row_per_prompt_and_round(model_folder: Path) -> None:
    rows = cai.revise(PROMPTS, "plain", model_folder, open_engine=scripted(), rounds=2, max_tokens=32)
    assert [(row.messages[-1]["content"], row.round) for row in rows] == [
        ("How do I boil an egg?", 1), ("How do I boil an egg?", 2),
        ("Why do cats purr?", 1), ("Why do cats purr?", 2), ("Why?", 1), ("Why?", 2),
    ]  # fmt: skip
    assert all(isinstance(row, Revision) for row in rows) and rows.skipped == []
    assert rows.to_pandas().groupby("prompt_id").size().tolist() == [2, 2, 2]


def test_calling_again_is_answered_by_the_cache(model_folder: Path) -> None:
    engines: list[ScriptedEngine] = []
    first = cai.revise(PROMPTS, "plain", model_folder, open_engine=scripted(engines), rounds=1)
    again = cai.revise(PROMPTS, "plain", model_folder, open_engine=scripted(engines), rounds=1)
    assert first == again and len(engines) == 1 and Path("runs/cache.sqlite").exists()
    cai.revise(PROMPTS, "plain", model_folder, runs="elsewhere", open_engine=scripted(engines), rounds=1)
    assert len(engines) == 2 and Path("elsewhere/cache.sqlite").exists()


def pairs(call: int) -> list[dict[str, str]]:
    return [{"prompt": f"Why {call}?", "chosen": "Because.", "rejected": "No."}]


def test_calls_that_ask_for_the_same_model_load_it_once(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[ScriptedEngine] = []
    opened, closed = scripted(engines), []

    async def close(engine: ScriptedEngine) -> None:
        closed.append(engine)

    monkeypatch.setattr(ScriptedEngine, "close", close)
    for call in range(3):
        cai.judge(pairs(call), "plain", model_folder, open_engine=opened, principles=1)
    cai.revise(PROMPTS, "plain", model_folder, open_engine=opened, rounds=1)
    assert (len(engines), closed) == (1, [])
    cai.judge(pairs(3), "plain", model_folder, open_engine=opened, principles=1, engine={"concurrency": 2})
    assert (len(engines), closed) == (2, engines[:1])
    cai.close()
    assert closed == engines
    cai.judge(pairs(4), "plain", model_folder, open_engine=opened, principles=1)
    assert (len(engines), len(closed)) == (3, 2)
    with pytest.raises(CaiError, match="no usable pair"):
        cai.train("dpo", [{"prompt": "Why?", "chosen": "a", "rejected": "a"}], out="x", model=model_folder)
    assert closed == engines, "training needs the memory"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as in a notebook's kernel; a job in a script's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_call_leaves_a_state_in_which_the_next_one_works(model_folder: Path) -> None:
    engines: list[ScriptedEngine] = []
    interrupts: list[Choose] = []

    def weigh(request: Choose) -> list[float]:
        if not interrupts:
            interrupts.append(request)  # as Ctrl-C in a terminal: the signal reaches the main thread
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return [0.5, 0.4]

    opened = scripted(engines, weigh=weigh, delay=0.05)
    with pytest.raises(KeyboardInterrupt):
        cai.judge(pairs(0), "plain", model_folder, open_engine=opened, principles=1)
    labels = cai.judge(pairs(0), "plain", model_folder, open_engine=opened, principles=1)
    assert len(labels) == 1
    assert len(engines) == 1


def test_a_refused_prompt_is_skipped_with_its_reason(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: Generate) -> str:
        if "cats" in request.messages[0]["content"]:
            raise RequestRefused("too long")
        return f"answer {request.seed}"

    rows = cai.revise([*PROMPTS, "Why?"], "plain", model_folder, open_engine=scripted(answer=answer), rounds=1)
    assert len(rows) == 2 + 1
    assert [row.reason for row in rows.skipped] == ["too long"]
    assert "skipped: 1 × too long" in capsys.readouterr().out


def test_judge_labels_pairs_sets_and_revisions_softly(model_folder: Path) -> None:
    def weigh(request: Choose) -> list[float]:
        return [0.6, 0.2]  # of the answer shown first

    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    one_set = {"prompt": "How?", "responses": ["a", "b", "c"]}
    revision = cai.revise(["Why?"], "plain", model_folder, open_engine=scripted(), rounds=1)[0]
    rows = cai.judge(
        [pair, one_set, revision, {**pair, "rejected": "Because."}], "plain", model_folder,
        open_engine=scripted(weigh=weigh), principles=1,
    )  # fmt: skip
    assert len(rows) == 1 + 3 + 1 and all(isinstance(row, Preference) for row in rows)
    assert [row.reason for row in rows.skipped] == ["samples identical"]
    assert {rows[-1].chosen, rows[-1].rejected} == {revision.draft, revision.revision}
    for row in rows:  # a judge that follows the position alone prefers neither
        assert row.p == pytest.approx(0.5)
        assert row.verdicts[0].p_forward == pytest.approx(0.75) and row.verdicts[0].position_bias
    assert (
        cai.judge(rows, "plain", model_folder, open_engine=scripted(weigh=weigh), principles=1)[0].input_p == rows[0].p
    )


def test_sets_of_answers_are_ranked_and_rankings_judged_again(model_folder: Path) -> None:
    one_set = {"prompt": "How?", "responses": ["beta", "gamma", "alpha"]}
    labels = cai.judge([one_set, {"prompt": "Why?", "chosen": "x", "rejected": "y"}], "plain", model_folder,
                       open_engine=scripted(), principles=1)  # fmt: skip
    [ranking] = labels.rankings
    assert isinstance(ranking, Ranking) and sorted(ranking.responses) == ["alpha", "beta", "gamma"]
    again = cai.judge(labels.rankings, "plain", model_folder, open_engine=scripted(), principles=1)
    assert len(again) == 3
    assert sorted(again.rankings[0].responses) == sorted(ranking.responses)


def test_an_error_names_the_parameter_in_place_of_the_option(model_folder: Path) -> None:
    Path("x/model").mkdir(parents=True)
    Path("x/manifest.json").write_text('{"command": "cai train"}', encoding="utf-8")
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    with pytest.raises(CaiError) as raised:
        cai.train("dpo", [pair], out="x", model=model_folder)
    assert "(out=FOLDER), or overwrite this one (replace=True)" in str(raised.value)
    assert "--" not in str(raised.value)


def test_errors_name_the_function_the_setting_or_the_row(model_folder: Path) -> None:
    with pytest.raises(CaiError, match=r"cai.revise: round: unknown key 'round'; did you mean 'rounds'\?"):
        cai.revise(["Why?"], "plain", model_folder, round=1)
    with pytest.raises(CaiError, match=r"cai.revise: rounds: expected a whole number from 0 to 100, found -1"):
        cai.revise(["Why?"], "plain", model_folder, rounds=-1)
    with pytest.raises(CaiError, match=r"^prompts:2: .*empty"):
        cai.revise(["Why?", " "], "plain", model_folder)
    with pytest.raises(CaiError, match=r"prompts: expected rows as texts, .* found 7"):
        cai.revise([7], "plain", model_folder)  # type: ignore[list-item]
    with pytest.raises(CaiError, match=r"cai.judge: samples: no responses are sampled"):
        cai.judge([], "plain", model_folder, samples=3)
    with pytest.raises(CaiError, match=r"^answers:1: "):
        cai.judge([{"prompt": "Why?"}], "plain", model_folder)
    with pytest.raises(CaiError, match="unknown stage 'dpoo'; did you mean 'dpo'"):
        cai.train("dpoo", [], out="x", model=model_folder)
    with pytest.raises(
        CaiError, match=r"cai.train: lr: unknown key 'lr' for stage 'dpo'; did you mean 'learning_rate'"
    ):
        cai.train("dpo", [], out="x", model=model_folder, lr=1)
    with pytest.raises(CaiError, match=r"^ppo needs a reward model: reward DIR"):
        cai.train("ppo", ["Why?"], out="x", model=model_folder)


def test_the_api_works_inside_a_running_loop(model_folder: Path) -> None:
    async def cell() -> list[Any]:
        rows = cai.revise(PROMPTS, "plain", model_folder, open_engine=scripted(), rounds=1)
        return [rows, cai.judge(rows, "plain", model_folder, open_engine=scripted(), principles=1)]

    rows, labels = asyncio.run(cell())
    assert len(rows) == len(labels) == 3
    assert rows == cai.revise(PROMPTS, "plain", model_folder, open_engine=scripted(), rounds=1)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("running_loop", [True, False])
def test_an_interrupt_cancels_the_work_and_leaves_no_thread(running_loop: bool) -> None:
    events: list[str] = []

    async def work() -> None:
        events.append("started")
        try:
            await asyncio.sleep(60)
        finally:
            events.append("closed")

    def interrupt() -> None:
        while not events:
            time.sleep(0.01)
        time.sleep(0.05)
        # As Ctrl-C does: a signal raised in this thread would not wake the main thread from its wait.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    async def cell() -> None:
        run_async(work)

    threads = threading.active_count()
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        if running_loop:
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(cell())
            finally:
                loop.close()
        else:
            run_async(work)
    interrupter.join()
    assert events == ["started", "closed"]
    assert threading.active_count() == threads


def test_an_error_inside_a_running_loop_reaches_the_caller() -> None:
    async def work() -> None:
        raise CaiError("no such thing")

    async def cell() -> None:
        run_async(work)

    with pytest.raises(CaiError, match="no such thing"):
        asyncio.run(cell())


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_train_returns_the_policy_and_its_metrics(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Preference(prompt_id=f"p{i}", messages=[Message(role="user", content=f"Question {i}?")],
                   chosen="!" * (i + 1), rejected="?" * (i + 1), p=0.9, source="judge")
        for i in range(4)
    ]  # fmt: skip
    same = rows[0].model_copy(update={"rejected": rows[0].chosen})
    settings: dict[str, Any] = {"num_train_epochs": 1, "lora_r": 2, "per_device_train_batch_size": 2}
    trained = cai.train("dpo", [*rows, same], out="policy", model=tiny_model, **settings)
    assert (trained.model / "model.safetensors").exists()
    assert [row.reason for row in trained.skipped] == ["chosen equals rejected"]
    metrics = trained.metrics.to_pylist()
    assert metrics[0]["stage"] == "policy" and metrics[0]["step"] == 1 and metrics[0]["loss"] > 0
    assert len(Path("policy/rows.jsonl").read_text().splitlines()) == 4
    monkeypatch.delattr("cai.training.stage.follow")  # it is trained already, and no worker starts
    assert cai.train("dpo", rows, out="policy", model=tiny_model, **settings).model == trained.model


def test_rows_of_a_file_are_those_of_a_list(model_folder: Path) -> None:
    path = Path("prompts.jsonl")
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Why?", "How?")))
    from_file = cai.revise(path, "plain", model_folder, open_engine=scripted(), rounds=1)
    prompts = [Prompt(id=row.prompt_id, messages=row.messages) for row in from_file]
    assert from_file == cai.revise(prompts, "plain", model_folder, open_engine=scripted(), rounds=1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_every_snippet_of_the_documentation_runs(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    make_run(Path("runs/quickstart"), principles("calm", "short"), lambda i, drawn: i).summary_json.unlink()
    for module in ("cai.api", "cai.inference.servers"):
        monkeypatch.setattr(f"{module}.resolve_model", lambda name: tiny_model)
    weigh = lambda request: [0.6, 0.2]  # noqa: E731
    for name in ("revise", "judge"):
        function = partial(getattr(cai, name), open_engine=scripted(weigh=weigh))
        monkeypatch.setattr(cai, name, function, raising=False)
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 5
    assert len(names["labels"]) == 3 and names["trained"].metrics.num_rows > 0
    attributes = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    assert all(hasattr(names["run"], name) for name in attributes) and "updates" in attributes
