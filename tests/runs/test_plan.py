"""Which models a run file names for which part of a run, and the settings of each one's engine."""

import shutil
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.inference.engine import EngineConfig
from cai.runs.plan import Plan, make_plan, manifest
from tests.conftest import write_workspace


def planned(folder: Path, model: Path, extra: str) -> Plan:
    return make_plan(write_workspace(folder, model, extra=extra), [], None, folder / "runs")


def another(folder: Path, model: Path, name: str) -> Path:
    copied = shutil.copytree(model, folder / name)
    (copied / "config.json").write_text(f'{{"name": "{name}"}}', encoding="utf-8")
    return copied


def test_the_runs_model_does_all_that_no_other_is_named_for(tmp_path: Path, model_folder: Path) -> None:
    plan = planned(tmp_path, model_folder, "")
    assert (plan.reviser, plan.judge_models, plan.eval_judge) == (model_folder, [model_folder], model_folder)
    assert plan.own_settings == {}


def test_each_part_of_a_run_may_have_a_model_with_engine_settings_of_its_own(
    tmp_path: Path, model_folder: Path
) -> None:
    teacher, judge, eval_judge = (another(tmp_path, model_folder, name) for name in ("teacher", "judge", "eval"))
    plan = planned(
        tmp_path,
        model_folder,
        f"revise: {{model: {teacher}, engine: {{max_model_len: 512}}}}\n"
        f"judge: {{model: {judge}, engine: {{stall_minutes: 30}}}}\n"
        f"evaluate: {{judge: {eval_judge}}}\nengine: {{max_model_len: 1024, concurrency: 3}}\n",
    )
    assert (plan.reviser, plan.judge_models, plan.eval_judge) == (teacher, [judge], eval_judge)
    assert plan.own_settings == {
        teacher: EngineConfig(max_model_len=512, concurrency=3),
        judge: EngineConfig(max_model_len=1024, concurrency=3, stall_minutes=30),
    }
    assert manifest(plan)["reviser"] is not None


@pytest.mark.parametrize("section", ["revise", "judge", "evaluate"])
def test_engine_settings_need_a_model_of_their_own(section: str, tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(CaiError, match=rf"{section}.engine: needs {section}\.(model|judge)"):
        planned(tmp_path, model_folder, f"{section}: {{engine: {{max_model_len: 512}}}}\n")


def test_one_model_has_one_engine(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(CaiError, match=r"judge.engine: .* is also another model of this run, with other engine"):
        planned(tmp_path, model_folder, f"judge: {{model: {model_folder}, engine: {{max_model_len: 512}}}}\n")


def test_an_unknown_engine_argument_is_an_error_of_its_section(tmp_path: Path, model_folder: Path) -> None:
    other = another(tmp_path, model_folder, "judge")
    with pytest.raises(CaiError, match=r"judge.engine.vllm.dtipe: .*did you mean dtype"):
        planned(tmp_path, model_folder, f"judge: {{model: {other}, engine: {{vllm: {{dtipe: half}}}}}}\n")
