"""The run's judge as the reward of a training stage."""

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console

from cai.config.errors import CaiError, RequestRefused
from cai.inference.cache import Cache
from cai.inference.chat_template import load_tokenizer
from cai.inference.engine import Choose, Engine, EngineConfig, ScriptedEngine
from cai.inference.models import Model, Server
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine, Scheduler, open_model
from cai.runs.dry_run import account, dry_run
from cai.runs.folder import RunFolder
from cai.runs.judge_reward import RunJudge
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.verify import verify_run
from cai.training import stage, worker
from cai.training.settings import PPOConfig
from cai.training.stage import Ask, Report, StageSpec, reward_models
from cai.training.tracking import large_penalty
from tests.conftest import ROOT, SIXTEEN, scripted, write_workspace
from tests.inference.test_endpoints import Service, completion

BARE = "revise: {rounds: 0}\njudge: {samples: 0, principles: 2}\n"
PPO = """
train:
  - {stage: ppo, reward: judge, lora_r: 2, updates: 4, rollouts: 4, per_device_train_batch_size: 4, max_tokens: 6,
     learning_rate: 1.0e-2, save_steps: 2, sample_steps: 1, missing_eos_penalty: 0}
"""
ONLINE = "train: [{{stage: {}, reward: judge, lora_r: 2, max_tokens: 4, per_device_train_batch_size: 4}}]\n"
RATED = 0.8  # of the probability


def answer_of(request: Choose) -> str:
    return request.messages[0]["content"].partition("<answer>\n")[2].partition("\n</answer>")[0]


def number_for(answer: str) -> int:
    """What the scripted judge thinks of an answer: the more lower-case letters the better."""
    return min(9, 1 + 2 * sum("a" <= letter <= "z" for letter in answer))


def weigh(request: Choose) -> Sequence[float]:
    if request.step != "rating":
        return [1 / len(request.options)] * len(request.options)
    best = number_for(answer_of(request))
    return [RATED if int(option) == best else 1e-30 for option in request.options]


def execute_run(
    run_file: Path, *overrides: str, open_engine: OpenEngine | None = None, console: Console | None = None
) -> RunFolder:
    plan = make_plan(run_file, list(overrides), None, run_file.parent / "runs")
    reporter = Reporter(console or Console(quiet=True))
    [folder] = execute(plan, reporter, False, open_engine or scripted(weigh=weigh))
    return folder


def lines(folder: RunFolder, name: str = "1-ppo", file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.train / name / file).read_text().splitlines()]


@pytest.mark.usefixtures("no_worker")
def test_the_judge_rates_what_ppo_samples(tmp_path: Path, tiny_model: Path) -> None:
    engines: list[ScriptedEngine] = []
    folder = execute_run(
        write_workspace(tmp_path, tiny_model, extra=BARE + PPO), open_engine=scripted(engines, weigh=weigh)
    )
    tokenizer = load_tokenizer(tiny_model)
    samples = lines(folder, file="samples.jsonl")
    assert len(samples) == 16
    for sample in samples:
        text = tokenizer.decode(tokenizer.encode(sample["response"]), skip_special_tokens=True).strip()
        if "\ufffd" not in text:
            assert sample["score"] == pytest.approx((number_for(text) - 5) / 4, abs=1e-6)
    for line in lines(folder):
        assert line["judge/non_option_mass"] == pytest.approx(1 - RATED)
        assert line["judge/refused"] == 0
        assert (line["judge/rating"] - 5) / 4 == pytest.approx(line["objective/scores"], abs=1e-6)
        assert any(key.startswith("judge/rating/") for key in line)
    manifest = json.loads((folder.train / "1-ppo/manifest.json").read_text())
    assert manifest["judge"].keys() == {"models", "constitution", "principles", "templates", "seed"}
    assert "reward" not in manifest
    summary = folder.summary()
    assert summary is not None
    [work] = [line for line in account(summary) if line.stage == "1-ppo: ratings"]
    assert work.step == "rating" and work.cache_misses + work.cache_hits == 4 * 4 * 2
    assert sum(request.step == "rating" for engine in engines for request in engine.requests) == work.cache_misses
    assert summary["training"]["1-ppo"]["updates"] == 4
    assert not [check for check in verify_run(folder) if check.state == "differs"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("kind", ["rloo", "grpo", "online_dpo"])
def test_the_judge_rewards_the_stages_that_trl_trains(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    run_file = write_workspace(tmp_path, tiny_model, extra=BARE + ONLINE.format(kind))
    forecast = dry_run(make_plan(run_file, [], None, tmp_path / "runs"))
    folder = execute_run(run_file)
    updates = [line for line in lines(folder, f"1-{kind}") if "loss" in line]
    assert updates and all(line["judge/non_option_mass"] == pytest.approx(1 - RATED) for line in updates)
    if kind != "online_dpo":  # whose answers without an end trl replaces the score of
        ended = [line for line in updates if line["completions/clipped_ratio"] == 0]
        assert all((line["judge/rating"] - 5) / 4 == pytest.approx(line["reward"], abs=1e-5) for line in ended)
    [work] = [line for line in account(folder.summary() or {}) if line.stage == f"1-{kind}: ratings"]
    [counted] = [line for line in forecast.lines if line.stage == f"1-{kind}: ratings"]
    assert counted.cache_misses == work.cache_misses + work.cache_hits


@pytest.mark.usefixtures("no_worker")
def test_a_dry_run_counts_the_ratings(tmp_path: Path, tiny_model: Path) -> None:
    run_file = write_workspace(tmp_path, tiny_model, extra=BARE + PPO)
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    found = dry_run(plan)
    [line] = [line for line in found.lines if line.step == "rating"]
    assert (line.stage, line.cache_misses, line.cache_hits) == ("1-ppo: ratings", 4 * 4 * 2, 0)
    assert found.tokens_read > 4 * 4 * 2 * 50
    execute_run(run_file)
    assert not [line for line in dry_run(plan).lines if line.step == "rating"]


def interrupting(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Trains in this process, and is interrupted after an update, once."""
    left = [step]

    def follow(command: list[str], log: Path, report: Report, reply: Ask) -> None:
        def interrupt(event: dict[str, Any]) -> None:
            report(event)
            if left and event.get("step") == left[0]:
                left.clear()
                raise KeyboardInterrupt

        worker.train(StageSpec.read(Path(command[-1])), interrupt, reply)

    monkeypatch.setattr(stage, "follow", follow)


def test_a_resumed_training_has_the_same_bits_and_asks_nothing_twice(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = "1-ppo/model/model.safetensors"
    found: dict[str, tuple[bytes, list[dict[str, Any]], int]] = {}
    for name, step in (("whole", -1), ("broken", 3)):  # after the checkpoint of update 2
        (tmp_path / name).mkdir()
        run_file = write_workspace(tmp_path / name, tiny_model, extra=BARE + PPO)
        interrupting(monkeypatch, step)
        engines: list[ScriptedEngine] = []
        if name == "broken":
            with pytest.raises(KeyboardInterrupt):
                execute_run(run_file, open_engine=scripted(engines, weigh=weigh))
        folder = execute_run(run_file, open_engine=scripted(engines, weigh=weigh))
        asked = sum(request.step == "rating" for engine in engines for request in engine.requests)
        metrics = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines(folder)]
        found[name] = ((folder.train / weights).read_bytes(), metrics, asked)
    assert found["broken"] == found["whole"]


@pytest.mark.slow
def test_a_worker_in_a_process_of_its_own_asks_the_runs_engine(tmp_path: Path, tiny_model: Path) -> None:
    folder = execute_run(write_workspace(tmp_path, tiny_model, extra=BARE + PPO))
    assert [line["judge/non_option_mass"] for line in lines(folder)] == pytest.approx([1 - RATED] * 4)
    log = (folder.train / "1-ppo/train.log").read_text()
    assert "Traceback" not in log


@pytest.mark.usefixtures("no_worker")
def test_a_judge_on_a_server_rates_over_all_updates(tmp_path: Path, tiny_model: Path) -> None:
    service = Service(["big"])
    service.answer = lambda asked: (200, completion("5", {"5": 0.6, "9": 0.2}))

    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        return open_model(model, fingerprint, settings) if isinstance(model, Server) else ScriptedEngine(fingerprint)

    extra = BARE.replace("principles: 2", f"principles: 2, model: '{service.url}#big'")
    evaluate = "evaluate: {judge: 'off'}\n"
    try:
        folder = execute_run(
            write_workspace(tmp_path, tiny_model, extra=extra + evaluate + PPO), open_engine=open_engine
        )
    finally:
        service.close()
    least = [asked for asked in service.asked if asked.get("logprobs")]
    assert len(least) > 4 * 2  # more than a probe
    for line in lines(folder):
        assert 5 < line["judge/rating"] < 7
        assert line["judge/refused"] == 0


@pytest.mark.usefixtures("no_worker")
def test_a_refused_answer_gets_the_mean_and_is_counted(tmp_path: Path, tiny_model: Path) -> None:
    def fussy(request: Choose) -> Sequence[float]:
        if request.step == "rating" and len(answer_of(request)) % 2:
            raise RequestRefused("an odd answer")
        return weigh(request)

    console = Console(record=True, width=200)
    folder = execute_run(
        write_workspace(tmp_path, tiny_model, extra=BARE + PPO), open_engine=scripted(weigh=fussy), console=console
    )
    refused = [line["judge/refused"] for line in lines(folder)]
    assert 0 < sum(refused) < 16
    for line in lines(folder):  # the mean of the others leaves the mean as it is
        assert (line["judge/rating"] - 5) / 4 == pytest.approx(line["objective/scores"], abs=1e-6)
    assert console.export_text().count("refuses an answer, which gets the mean reward: an odd answer") == 1


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(("mass", "warnings"), [(0.4, 1), (0.6, 0)])
def test_ratings_that_are_mostly_no_numbers_are_warned_of_once(
    tmp_path: Path, tiny_model: Path, mass: float, warnings: int
) -> None:
    console = Console(record=True, width=300)
    execute_run(
        write_workspace(tmp_path, tiny_model, extra=BARE + PPO),
        open_engine=scripted(weigh=lambda request: [mass / len(request.options)] * len(request.options)),
        console=console,
    )
    assert console.export_text().count("most of the judge's probability is outside the numbers") == warnings


@pytest.mark.usefixtures("no_worker")
def test_a_judge_that_refuses_every_answer_ends_the_training(tmp_path: Path, tiny_model: Path) -> None:
    def mute(request: Choose) -> Sequence[float]:
        raise RequestRefused("no")

    run_file = write_workspace(tmp_path, tiny_model, extra=BARE + PPO)
    with pytest.raises(CaiError, match=r"the judge refuses all of 4 answers: no"):
        execute_run(run_file, open_engine=scripted(weigh=mute))


@pytest.mark.usefixtures("no_worker")
def test_a_judge_without_log_probabilities_is_refused_before_training_starts(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server.at("http://localhost:1", "judge")
    monkeypatch.setattr("cai.runs.roles.resolve_judges", lambda *_, **__: [server])

    class Mute(ScriptedEngine):
        async def choose(self, request: Choose) -> list[float]:
            raise CaiError("the server returns no log-probabilities")

    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        return Mute(fingerprint)

    extra = BARE.replace("principles: 2", "principles: 2, model: 'http://localhost:1/v1#judge'")
    run_file = write_workspace(tmp_path, tiny_model, extra=extra + PPO)
    with pytest.raises(CaiError, match="returns no log-probabilities"):
        execute_run(run_file, open_engine=open_engine)
    assert not (tmp_path / "runs/test/train/1-ppo").exists()


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(("penalty", "warns"), [(0.5, True), (0.0, False), (0.004, False)])
def test_a_penalty_far_above_the_spread_of_the_ratings_is_a_warning_early_and_at_the_end(
    tmp_path: Path, tiny_model: Path, penalty: float, warns: bool
) -> None:
    def narrow(request: Choose) -> Sequence[float]:
        """Ratings of 5, and a little more of 6 for answers of an odd length."""
        odd = 0.05 * (len(answer_of(request)) % 2) if request.step == "rating" else 0.0
        return [{"5": 0.9 - odd, "6": odd or 1e-30}.get(option.strip(), 1e-30) for option in request.options]

    console = Console(record=True, width=300)
    run_file = write_workspace(tmp_path, tiny_model, extra=BARE + PPO)
    overrides = [f"train.0.missing_eos_penalty={penalty}", "train.0.max_tokens=4"]
    folder = execute_run(run_file, *overrides, open_engine=scripted(weigh=narrow), console=console)
    spread = fmean(line["judge/reward_std"] for line in lines(folder))
    assert 0.001 < spread < 0.02
    text = f"missing_eos_penalty is {penalty:g}, and the standard deviation of the judge's reward {spread:.2g} "
    summary = folder.summary()
    assert summary is not None
    assert [warning.startswith(text) for warning in summary["training"]["1-ppo"]["warnings"]] == [True] * warns
    assert console.export_text(clear=False).count("1-ppo: warning: missing_eos_penalty is") == warns


@pytest.mark.parametrize("share", [{"response/eos_rate": 1.0}, {"completions/clipped_ratio": 0.0}])
def test_a_penalty_that_no_answer_gets_is_no_warning(share: dict[str, float]) -> None:
    line = {"judge/reward_std": 0.01}
    settings = {"stage": "grpo", "reward": "judge", "missing_eos_penalty": 1.0}
    assert large_penalty([line | share], settings) is None
    assert large_penalty([line | share, line], settings) is not None
    assert large_penalty([line], settings | {"reward": "last"}) is None


@pytest.mark.usefixtures("no_worker")
def test_a_panels_ratings_are_averaged(tmp_path: Path, tiny_model: Path) -> None:
    judges = [shutil.copytree(tiny_model, tmp_path / f"judge-{number}") for number in range(2)]
    (judges[1] / "generation_config.json").write_text("{}", encoding="utf-8")

    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        best = "8" if model == judges[1] else "2"
        return ScriptedEngine(
            fingerprint, weigh=lambda request: [1.0 if option == best else 1e-30 for option in request.options]
        )

    extra = BARE.replace("principles: 2", f"principles: 2, model: [{judges[0]}, {judges[1]}]")
    folder = execute_run(write_workspace(tmp_path, tiny_model, extra=extra + PPO), open_engine=open_engine)
    assert all(line["judge/rating"] == pytest.approx((2 + 8) / 2) for line in lines(folder))


CONSTITUTION = """
name: tagged
principles:
  - {id: one, critique: "What is wrong?", revision: "Mend it.", judge: "Which is better?", applies_to: {tags: [odd]}}
"""


@pytest.mark.usefixtures("no_worker")
def test_prompts_to_which_no_principle_applies_are_skipped(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "tagged.yaml").write_text(CONSTITUTION, encoding="utf-8")
    run_file = write_workspace(tmp_path, tiny_model, extra=BARE + PPO)
    rows = [{"id": f"p{i}", "prompt": f"Question {i}?", "tags": ["odd" if i % 2 else "even"]} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = execute_run(run_file, f"constitution={tmp_path / 'tagged.yaml'}", "prompts.holdout=0")
    counts = json.loads((folder.train / "1-ppo/data.json").read_text())
    assert counts["examples"] == 4
    assert {prompt_id for prompt_id, _ in counts["refused"]} == {"p0", "p2", "p4", "p6"}
    skipped = [json.loads(line) for line in folder.skipped_jsonl.read_text().splitlines()]
    of_stage = [row for row in skipped if row["stage"] == "1-ppo"]
    assert {row["reason"] for row in of_stage} == {"no principle applies to the prompt"} and len(of_stage) == 4


@pytest.mark.parametrize("change", ["judge.principles=3", "templates=mine", "seed=1", "constitution=other.yaml"])
def test_what_decides_the_ratings_decides_the_stage(tmp_path: Path, model_folder: Path, change: str) -> None:
    shutil.copytree(ROOT / "prompts/default", tmp_path / "mine")
    rate = tmp_path / "mine/rate.jinja"
    rate.write_text(rate.read_text(encoding="utf-8").replace("How well", "How very well"), encoding="utf-8")
    (tmp_path / "other.yaml").write_text(
        SIXTEEN.read_text(encoding="utf-8").replace("people", "persons"), encoding="utf-8"
    )
    run_file = write_workspace(tmp_path, model_folder, extra=BARE + PPO)
    identities = []
    for overrides in ([], [], [change]):
        plan = make_plan(run_file, overrides, None, tmp_path / "runs")
        with closing(Cache(tmp_path / "cache.sqlite")) as cache:
            scheduler = Scheduler(plan.config.engine.shared, cache, None, scripted(), plan.own_settings)
            identities.append(RunJudge(plan, scheduler, "1-ppo").identity)
    first, again, changed = identities
    assert first == again != changed


def test_a_judge_is_no_folder_and_needs_a_run(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(
        CaiError, match=r"--reward judge: the judge and its constitution are a run's: set `reward: judge`"
    ):
        reward_models(PPOConfig(stage="ppo", reward="judge"), "--reward")
    (tmp_path / "judge").mkdir()  # is not what `judge` means
    run_file = write_workspace(tmp_path, model_folder, extra=PPO)
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    assert plan.train[0].reward == "judge"  # type: ignore[union-attr]
    assert "rate.jinja" in plan.templates.files()
    without = make_plan(run_file, ["train=[]"], None, tmp_path / "runs")
    assert "rate.jinja" not in without.templates.files()


def test_a_value_function_does_not_start_as_the_judge(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=PPO)
    with pytest.raises(CaiError, match=r"train\[0\]: value_init: the judge is no reward model"):
        make_plan(run_file, ["train.0.value=separate", "train.0.value_init=reward"], None, tmp_path / "runs")


def test_a_template_folder_without_the_rating_is_named(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(ROOT / "prompts/default", tmp_path / "mine")
    (tmp_path / "mine/rate.jinja").unlink()
    run_file = write_workspace(tmp_path, model_folder, extra=PPO)
    with pytest.raises(CaiError, match=r"rate\.jinja: this template is missing, which `reward: judge` needs; copy it"):
        make_plan(run_file, ["templates=mine"], None, tmp_path / "runs")
