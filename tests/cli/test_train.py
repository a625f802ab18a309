"""`cai train`: one stage alone, on files of several shapes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.data.files import table_writer
from cai.data.jsonl import read_rows
from cai.data.records import Demonstration, Preference, Revision, Skipped
from cai.report.serve import Library, respond
from cai.training.stage import StageSpec, stage_settings_class
from tests.cli.test_cli import cai


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *(str(arg) for arg in args)], catch_exceptions=True)


def fault(*args: str | Path) -> str:
    result = invoke(*args)
    assert isinstance(result.exception, CaiError), result.output
    return str(result.exception)


def set_by_users(stage: str) -> list[str]:
    names = [name for name in stage_settings_class(stage).model_fields if name != "stage"]
    assert {"learning_rate", "trl", "beta"} < set(names)
    return names


def pairs(folder: Path, *more: dict[str, Any]) -> Path:
    rows = [{"prompt": f"Question {i}?", "chosen": "!" * (i + 1), "rejected": "?" * (i + 1)} for i in range(8)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    return path


@pytest.mark.usefixtures("no_worker")
def test_a_reward_model_and_ppo_from_files_alone(tmp_path: Path, tiny_model: Path) -> None:
    data = pairs(tmp_path, {"prompt": "Same?", "chosen": "a", "rejected": "a"})
    out = tmp_path / "out/reward"
    given = ("--data", data, "--model", tiny_model, "--out", out, "--set", "lora_r=2", "--set", "holdout=0.25")
    result = invoke("reward", *given)
    assert result.exit_code == 0, result.output
    assert re.search(r"skipped +1 × chosen equals rejected", result.output)
    assert re.search(r"accuracy .* on 2 held-out pairs", result.output)
    assert "already trained" in invoke("reward", *given).output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reward"]  # nothing is left beside it
    assert len((out / "rows.jsonl").read_text().splitlines()) == 8
    assert json.loads((out / "stage.json").read_text())["data"] == str(out / "rows.jsonl")

    message = fault("reward", *given, "--seed", "1")
    assert "holds finished results of `cai train` with other settings:\n  seed: 0 → 1\n" in message
    assert "(--out FOLDER), or overwrite this one (--replace)" in message
    assert "needs a reward model: --reward DIR" in fault("ppo", *given[:6])

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(4)))
    small = [f"--set={s}" for s in ("lora_r=2", "updates=1", "rollouts=2", "max_tokens=4")]
    asked = ("ppo", "--data", prompts, "--model", tiny_model, "--out", tmp_path / "out/ppo", *small)
    assert "not a reward model" in fault(*asked, "--reward", tiny_model)
    result = invoke(*asked, "--reward", out / "model")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/ppo/model/model.safetensors").exists()
    assert (tmp_path / "out/ppo/samples.jsonl").exists()
    results, _, trust = result.output.partition("Can I trust this?")
    assert re.search(r"1 update:\s+score -?\d\.\d+\s+KL -?\d\.\d+\s", results) and "→" not in results
    assert re.search(r"n +2 sampled answers to 2 of 4 prompts learned from", trust)
    assert re.search(rf"\nNext\n +cai eval {tmp_path}/out/ppo\s", trust)

    listed = CliRunner().invoke(app, ["runs", "--runs", str(tmp_path / "out")]).output
    assert re.search(r"^ +ppo +20\S+ \S+ +finished +– +– +– +ppo +–", listed, re.MULTILINE)
    assert re.search(r"^ +reward +20\S+ \S+ +finished +– +– +– +reward +–", listed, re.MULTILINE)
    for command in ("report", "show"):
        shown = CliRunner().invoke(app, [command, str(tmp_path / "out/ppo"), "--runs", str(tmp_path / "out")])
        assert str(shown.exception) == (
            f"{tmp_path}/out/ppo: holds the results of `cai train`, not a run (runs there: none). `cai serve` has its "
            f"page, and `cai eval {tmp_path}/out/ppo` evaluates the policy"
        )
    library = Library(tmp_path / "out")
    assert ">ppo</a>" in respond(library, "/").body
    assert 'value="ppo"' not in respond(library, "/").body  # a training is not compared with runs
    page = respond(library, "/report?run=ppo").body
    assert "tokens per answer 4.000" in page and "2 sampled answers to 2 of 4 prompts learned from" in page
    assert respond(library, "/report?run=ppo&run=reward").status == 404


@pytest.mark.parametrize(
    ("stage", "options", "expected"),
    [
        ("ppoo", (), "unknown stage 'ppoo'; did you mean 'ppo'?"),
        ("learn", (), "unknown stage 'learn'; expected one of sft, reward, ppo, dpo"),
        ("dpo", ("--reward", "x"), "--reward x: dpo takes no reward model; ppo, rloo, grpo and online_dpo do"),
        ("dpo", ("--set", "epochs=1"), "--set epochs: 'epochs' is now called 'num_train_epochs'"),
        ("ppo", ("--set", "epochs=1"), "--set epochs: 'epochs' is now called 'num_ppo_epochs'"),
        ("dpo", ("--set", "lr=1"), "--set lr: unknown key 'lr' for stage 'dpo'; did you mean 'learning_rate'?"),
        (
            "orpo",
            ("--set", "gamma=1"),
            f"unknown key 'gamma' for stage 'orpo'; known keys: {', '.join(set_by_users('orpo'))}",
        ),
        ("dpo", ("--set", "train.0.beta=1"), "`cai train` trains one stage; omit the prefix: --set beta=1"),
        ("dpo", ("--set", "betta=1"), "--set betta: unknown key 'betta' for stage 'dpo'; did you mean 'beta'?"),
        ("dpo", ("--set", "beta=-1"), "--set beta: expected a number above 0, found -1"),
        ("dpo", ("--launcher", "torchrunn"), "launcher: 'torchrunn' not found"),
    ],
)
def test_a_wrong_option_is_named(
    tmp_path: Path, tiny_model: Path, stage: str, options: tuple[str, ...], expected: str
) -> None:
    data = pairs(tmp_path)
    assert expected in fault(stage, "--data", data, "--model", tiny_model, "--out", tmp_path / "out", *options)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, tiny_model: Path) -> None:
    data = pairs(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    result = invoke("dpo", "--data", data, "--model", tiny_model, "--out", tmp_path / "mine")
    message = str(result.exception)
    assert "loading" not in result.output
    assert "is not empty and holds no results of `cai train`" in message
    assert (tmp_path / "mine/thesis.txt").exists()


def test_a_file_without_a_usable_row_is_refused_with_the_reasons(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Same?", "chosen": "a", "rejected": "a"}) + "\n")
    message = fault("dpo", "--data", path, "--model", tiny_model, "--out", tmp_path / "out")
    assert "no usable pair: 1 × chosen equals rejected" in message


def test_a_stage_gets_rows_in_cai_format_from_every_input_format(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[Path] = []

    def train_stage(name: str, spec: StageSpec[Any], *_: Any, keep_data: bool) -> tuple[Path, list[Skipped]]:
        assert keep_data
        spec.folder.mkdir(parents=True)
        handed.append(spec.data.rename(spec.folder / "rows.jsonl"))
        return spec.folder, []

    monkeypatch.setattr("cai.cli.train.train_stage", train_stage)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "so"}]
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nWhy?,so,no\n")
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": turns}], indent=1))
    (tmp_path / "kto.jsonl").write_text(
        "".join(json.dumps({"prompt": "Why?", "completion": c, "label": c == "so"}) + "\n" for c in ("so", "no"))
    )
    revision = Revision(
        prompt_id="x", messages=turns[:1], tags=[], round=1, draft="no", before="no", principle_id="p", principle_hash="h",
        critique=None, revision="so", truncated=[], flags=[], model="m", templates="t", seed=0,
    )  # type: ignore[arg-type]  # fmt: skip
    with table_writer(tmp_path / "revisions.parquet", Revision) as write:
        write(revision)
    for number, (stage, file) in enumerate(
        [("dpo", "pairs.csv"), ("sft", "chat.json"), ("sft", "kto.jsonl"), ("sft", "revisions.parquet")]
    ):
        result = invoke(stage, "--data", tmp_path / file, "--model", tiny_model, "--out", tmp_path / f"out{number}")
        assert result.exit_code == 0, result.output
    pair, chat, good, revised = handed
    assert [(p.chosen, p.rejected) for p in read_rows(pair, Preference)] == [("so", "no")]
    assert [a.completion for a in read_rows(chat, Demonstration)] == ["so"]
    assert [a.completion for a in read_rows(good, Demonstration)] == ["so"]
    assert read_rows(revised, Revision) == [revision]
    assert [row.reason for row in read_rows(tmp_path / "out2" / "skipped.jsonl", Skipped)] == [
        "the completion's label is false"
    ]


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        (["checkpoint-5", "checkpoint-10"], "Training of dpo resumes from update 10; the same command goes on:"),
        (["update-000003", "update-000006.part"], "Training of dpo resumes from update 3; the same command goes on:"),
        ([], "Training of dpo starts again: no checkpoint yet (save_steps: 20); the same command goes on:"),
    ],
)
def test_an_interrupted_training_names_the_update_that_it_resumes_from(
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoints: list[str],
    expected: str,
) -> None:
    def interrupted(spec: StageSpec[Any], *_: object) -> None:
        for name in checkpoints:
            path = spec.folder / "checkpoints" / name / "state.json"
            path.parent.mkdir(parents=True)
            path.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("cai.runs.pipeline.run_stage", interrupted)
    asked = ("dpo", "--data", pairs(tmp_path), "--model", tiny_model, "--out", tmp_path / "out")
    assert cai(monkeypatch, "train", *asked) == 130
    assert f"Interrupted. {expected}\n  cai train dpo" in capsys.readouterr().out


def test_a_failed_training_is_listed_with_its_error_until_it_is_started_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[BaseException] = [CaiError("out of memory\nsecond line"), KeyboardInterrupt()]

    def end(*_: object) -> None:
        raise ends.pop(0)

    monkeypatch.setattr("cai.training.stage.follow", end)
    asked = ("dpo", "--data", pairs(tmp_path), "--model", tiny_model, "--out", tmp_path / "runs/mine")
    listed = []
    for status in (2, 130):
        assert cai(monkeypatch, "train", *asked) == status
        capsys.readouterr()
        assert cai(monkeypatch, "runs", "--runs", tmp_path / "runs") == 0
        listed.append(capsys.readouterr().out)
    assert re.search(r"^ +mine .* failed ", listed[0], re.MULTILINE) and "mine failed: out of memory\n" in listed[0]
    assert re.search(r"^ +mine .* stopped ", listed[1], re.MULTILINE) and "failed" not in listed[1]


def test_an_estimate_needs_a_config_alone_and_fits_80_columns(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    shown = invoke("ppo", "--model", tmp_path, "--estimate", "--gpus", "1").output
    assert re.search(r"ppo of \S+ on a GPU: \d+\.\d\d MiB at its peak", " ".join(shown.split()))
    assert re.search(r"MiB +sampling +loss +update", shown) and re.search(r"in all( +\d+\.\d\d){3}", shown)
    assert "reward model" in shown and "assumed: LoRA on the policy's weights" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines() if str(tmp_path) not in line) <= 80

    written = json.loads(invoke("sft", "--model", tmp_path, "--estimate", "--gpus", "0", "--json").output)
    assert written["moments"]["loss"] == sum(part["loss"] for part in written["parts"]) == written["peak"]
    longer = invoke(
        "sft", "--model", tmp_path, "--estimate", "--gpus", "0", "--json", "--set", "max_length=2048"
    ).output
    assert json.loads(longer)["peak"] > written["peak"]
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]  # nothing is written


def test_options_of_an_estimate_need_it_and_training_needs_data(tiny_model: Path) -> None:
    assert fault("sft", "--model", tiny_model) == "--data FILE: is missing; only --estimate works without it"
    assert "--gpus applies to --estimate only" in fault("sft", "--model", tiny_model, "--gpus", "2")
    assert "--json applies to --estimate only" in fault("sft", "--model", tiny_model, "--json")
    sharded = ("dpo", "--model", tiny_model, "--estimate", "--set", "fsdp=true")
    assert fault(*sharded) == "dpo.fsdp: the estimate shards over several GPUs, found 0; add --gpus N, such as 8"
    assert "found 1; add --gpus N" in fault(*sharded, "--gpus", "1")
    assert "optim: the states of lomo are not known" in fault(
        "sft", "--model", tiny_model, "--estimate", "--set", "trl.optim=lomo"
    )
