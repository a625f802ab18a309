"""How `cai run` and `cai eval` end: what came out, whether to trust it, and how to go on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.cli.eval import signs
from cai.cli.run import run_results
from cai.evaluation.monitors import Monitor, State
from cai.inference.engine import Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.models import Model
from cai.runs.evaluate import evaluate_policies
from cai.runs.find import run_to_compare
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.training.stage import StageSpec
from tests.cli.test_cli import cai
from tests.conftest import ROOT, write_workspace
from tests.runs.test_evaluate import by_name, make_run, model

Ending = tuple[dict[str, str], dict[str, str], list[str]]


def ending(printed: str) -> Ending:
    """What came out and what limits it, a text by name, and the commands to go on with."""
    results, trust, following = re.split(r"\n\n(?:Can I trust this\?|Next)\n", printed.rstrip())
    results = results.rpartition("\n\n")[2].partition("\n")[2]
    return _named(results), _named(trust), re.findall(r"^  (cai .*?)(?:  |$)", following, re.MULTILINE)


def _named(lines: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for line in lines.splitlines():
        name, text = re.match(r"  (?:(\S.*?)  +)?(.*)", line).groups()  # type: ignore[union-attr]
        last = name or list(texts)[-1]
        texts[last] = f"{texts[last]} {text.strip()}" if last in texts else text.strip()
    return texts


@pytest.fixture
def run_once(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """A run whose training logs so many updates, of a policy that ends its answers with a word."""

    def run(updates: int, word: str = "", prompts: int = 8) -> RunFolder:
        def train(spec: StageSpec[Any], *others: Any) -> Path:
            (spec.folder / "model").mkdir(parents=True)
            for file in spec.model.iterdir():
                (spec.folder / "model" / file.name).write_text('{"trained": true}', encoding="utf-8")
            lines = ({"step": step, "loss": 1 / step} for step in range(1, updates + 1))
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (spec.folder / "metrics.jsonl").write_text(text, encoding="utf-8")
            return spec.folder / "model"

        def opened(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
            def answer(request: Generate) -> str:
                return f"an answer to {request.messages[-1]['content'][:20]}" + trained

            trained = word if "train" in Path(str(model)).parts else ""
            return ScriptedEngine(fingerprint, answer, lambda request: [0.9, 0.05])

        monkeypatch.setattr("cai.runs.pipeline.run_stage", train)
        monkeypatch.setattr(execute, "__defaults__", (False, opened))
        run_file = write_workspace(tmp_path, model_folder, prompts, extra="train: [{stage: dpo}]\n")
        monkeypatch.chdir(tmp_path)
        assert cai(monkeypatch, "run", run_file, columns=80) == 0
        return RunFolder(tmp_path / "runs/test")

    return run


def test_equal_answers_have_no_win_rate_on_any_surface(
    run_once: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_once(updates=1).summary()
    assert summary is not None
    printed = capsys.readouterr().out
    results, trust, _ = ending(printed)
    assert results["win rate"] == "none: 2 answers after training, equal to those before"
    assert trust["ties"].endswith("2 of 2 held-out answers (2 with equal answers)")
    of_judge = ("win_rate", "after_better", "helpful_win_rate", "safe_win_rate")
    assert [summary["metrics"][key] for key in of_judge] == [None] * 4
    assert "P(after better)" not in printed


def test_a_run_ends_with_its_win_rate_what_limits_it_and_the_next_command(
    run_once: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(updates=2, word=" and more", prompts=4)
    printed = capsys.readouterr().out
    assert max(map(len, map(str.rstrip, printed[printed.index("Model calls") :].splitlines()))) <= 80
    results, trust, following = ending(printed)
    assert results["1-dpo"] == "2 updates, the first → the last: loss 1.000 → 0.500"
    assert results["win rate"] == "0.500 [0.111, 0.889], after against before training"
    assert list(trust) == ["n", "position bias", "ties", "principles", "truncated"]
    assert trust["n"] == "3 prompts, 1 held out; the interval of the win rate is wide"
    assert trust["position bias"].startswith("1.000 of the eval judge's verdicts; from 0.5 on")
    assert re.match(r"\d+ of 16 never sampled: \w", trust["principles"])
    assert trust["truncated"] == "none of the texts"
    assert following == ["cai eval test", "cai report test"]


def test_a_run_suggests_comparing_it_with_the_run_of_another_constitution(
    run_once: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = run_once(updates=2, word=" and more").path.parents[1] / "run.yaml"
    for options, suggested in {
        ("--name", "same", "--set", "seed=1"): [],
        ("--name", "brief", "--set", "constitution=constitutions/brief.yaml"): ["cai compare same brief"],
        ("--name", "fewer", "--set", "prompts.limit=4"): [],
    }.items():
        capsys.readouterr()
        assert cai(monkeypatch, "run", run_file, *options, columns=80) == 0
        name = options[1]
        assert ending(capsys.readouterr().out)[2] == [f"cai eval {name}", *suggested, f"cai report {name}"]
    runs = run_file.parent / "runs"
    for unfinished in ("test", "same"):
        (runs / unfinished / "summary.json").unlink()
    assert run_to_compare(RunFolder(runs / "brief"), runs) is None


def test_one_new_call_is_singular(run_once: Callable[..., RunFolder]) -> None:
    folder = run_once(updates=1)
    summary = folder.summary()
    assert summary is not None
    cost = {"sessions": 2, "cache_misses": 1, "tokens": 1, "seconds": {"feedback": 3.0}}
    results = run_results(folder, summary | {"in_all": cost})
    assert results.holds("3.0 s in 2 sessions; 1 new call, 1 token written")


def test_the_curve_of_one_update_has_no_thirds(
    run_once: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(updates=1)
    assert ending(capsys.readouterr().out)[0]["1-dpo"] == "1 update: loss 1.000"


def test_an_evaluation_ends_with_its_win_rates_what_limits_them_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs", "good")
    monkeypatch.setattr(evaluate_policies, "__defaults__", (False, by_name()))
    asked = ("good", "--runs", tmp_path / "runs", "--probes", "none", "--set", "temperature=0")
    assert cai(monkeypatch, "eval", *asked, columns=80) == 0
    printed = capsys.readouterr().out
    assert "note: only 12 prompts" not in printed  # said once, at the end
    results, trust, following = ending(printed)
    assert re.fullmatch(r"\d\.\d\d \[.*\] against base", results["win rate, overall"])
    assert trust["n"] == "12 prompts: expect wide intervals"
    assert len(trust) <= 5 and trust["ties"] == "0 of 12 comparisons"
    assert trust["judge"].startswith("is the model of 'base' and may prefer its own answers")
    again = " ".join(map(str, ("cai eval", *asked)))
    assert following == [
        f"{again} --judge NAME --out {tmp_path}/runs/good/eval-NAME",
        f"cai report good --runs {tmp_path}/runs",
    ]


def test_an_evaluation_in_another_folder_does_not_end_with_the_page_of_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs", "good")
    monkeypatch.setattr(evaluate_policies, "__defaults__", (False, by_name()))
    asked = ("good", "--runs", tmp_path / "runs", "--probes", "none", "--set", "temperature=0", "--out")
    assert cai(monkeypatch, "eval", *asked, tmp_path / "other", columns=200) == 0
    printed = capsys.readouterr().out
    assert "cai report" not in printed
    assert "all metrics in evaluation.json" in " ".join(printed.split())
    own = tmp_path / "runs/../runs/good/eval"  # the run's own, by another path
    assert cai(monkeypatch, "eval", *asked, own, columns=200) == 0
    assert "cai report good" in capsys.readouterr().out


def test_an_evaluation_of_two_trained_policies_ends_with_what_their_win_rate_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        make_run(tmp_path / "runs", name)
    monkeypatch.setattr(evaluate_policies, "__defaults__", (False, by_name()))
    asked = ("good", "--against", "bad", "--runs", tmp_path / "runs", "--probes", "none", "--set", "temperature=0")
    assert cai(monkeypatch, "eval", *asked, columns=80) == 0
    last = " ".join(capsys.readouterr().out.rsplit(": evaluated", 1)[1].split())
    assert last.count("bad against good (prompts only; training variance unknown)") == 3  # axes
    assert last.count("prompts only") == 3


def test_a_training_is_evaluated_without_further_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, stage = model(tmp_path / "base", "base"), tmp_path / "runs/dpo"
    model(stage / "model", "good")
    (stage / "manifest.json").write_text('{"command": "cai train"}', encoding="utf-8")
    spec = {"settings": {"stage": "dpo"}, "model": str(base), "reward": None, "data": "moved"}
    (stage / "stage.json").write_text(json.dumps(spec), encoding="utf-8")
    known = json.loads((ROOT / "examples/prompts.jsonl").read_text(encoding="utf-8").splitlines()[0])
    learned = {"prompt_id": "x", "messages": [{"role": "user", "content": known["prompt"]}], "chosen": "a"}
    (stage / "rows.jsonl").write_text(json.dumps(learned) + "\n", encoding="utf-8")
    monkeypatch.setattr(evaluate_policies, "__defaults__", (False, by_name(refuse="no prompt has this")))
    monkeypatch.chdir(tmp_path)
    assert cai(monkeypatch, "eval", "runs/dpo", "--probes", "none", "--set", "temperature=0", columns=80) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: the prompts are 50 of examples/prompts.jsonl, which comes with cai; --prompts FILE names" in printed
    assert "dpo was trained on" not in printed  # on the first of them, which is left out
    assert known["prompt"] not in (stage / "eval/answers.jsonl").read_text(encoding="utf-8")
    assert cai(monkeypatch, "runs") == 0
    assert re.search(r"^ +dpo .* finished +– +– +– +dpo +[01]\.\d+ \[", capsys.readouterr().out, re.MULTILINE)


def test_what_a_model_alone_lacks_for_an_evaluation_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cai(monkeypatch, "eval", model(tmp_path / "alone", "alone"), "--runs", tmp_path) == 2
    expected = "name a folder for the results (--out DIR), and the model to compare with (--reference MODEL)"
    assert expected in capsys.readouterr().err


def test_a_rating_without_an_interval_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs", "good")
    tied = by_name(judge=lambda request: [0.5, 0.4])  # whatever is shown first, so that each verdict is a tie
    monkeypatch.setattr(evaluate_policies, "__defaults__", (False, tied))
    asked = ("good", "--runs", tmp_path / "runs", "--probes", "none", "--set", "temperature=0")
    assert cai(monkeypatch, "eval", *asked, columns=80) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"good +0 \(no interval\) +0 \(no interval\)\n +good: all prompts are equal, so it has no", printed
    )
    assert ending(printed)[1]["ties"] == "12 of 12 comparisons"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["fine", "fine"], "0 of 2 measured"),
        (["unclear", "unclear", "not measured"], "0 of 2 measured, 2 unclear"),
        (["warns", "unclear", "fine"], "1 of 3 measured, 1 unclear: sign 0 (policy)"),
    ],
)
def test_signs_that_cannot_be_told_are_not_counted_as_absent(states: list[State], said: str) -> None:
    about: dict[str, Any] = {"policy": "policy", "value": None, "no_effect": 0.0, "threshold": 1.0, "meaning": "a sign"}
    assert signs([Monitor(name=f"sign {i}", state=state, **about) for i, state in enumerate(states)]) == said
