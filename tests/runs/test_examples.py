"""The shipped run files can be planned as they are, with other folders in place of the models that they name."""

import shutil
from pathlib import Path

import pytest
import yaml

from cai.inference.engine import RayConfig
from cai.inference.vllm_settings import gpus_needed
from cai.runs.plan import Plan, make_plan
from tests.conftest import ROOT

EXAMPLES = sorted(
    path.name for path in (ROOT / "examples").glob("*.yaml") if "endpoints" not in path.name
)  # needs servers
ROLES = ("model", "revise.model", "judge.model", "evaluate.judge")


def planned(name: str, folder: Path, model: Path) -> Plan:
    """The plan of an example; each model that it names is a folder of its own, without weights."""
    path = ROOT / "examples" / name
    data, overrides = yaml.safe_load(path.read_text(encoding="utf-8")), []
    for role in ROLES:
        section, _, key = role.rpartition(".")
        named = (data.get(section) or {} if section else data).get(key)
        if named is not None and not str(named).startswith("http"):
            own = folder / str(named).replace("/", "--")
            if "chat_template" in (data.get("engine") or {}):  # it is checked with the model's tokenizer
                shutil.copytree(model, own, dirs_exist_ok=True)
            elif not own.exists():
                own.mkdir()
                for file in model.iterdir():
                    (own / file.name).write_text(f'{{"name": "{named}"}}', encoding="utf-8")
            overrides.append(f"{role}={own}")
    return make_plan(path, overrides, None, folder / "runs")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_can_be_planned(name: str, tmp_path: Path, model_folder: Path, tiny_model: Path) -> None:
    plan = planned(name, tmp_path, tiny_model if name == "base-model.yaml" else model_folder)
    assert plan.training
    assert (plan.config.name or "") + ".yaml" == name


def test_one_gpu_gets_vllms_own_settings_but_those_of_the_file(tmp_path: Path, model_folder: Path) -> None:
    engine = planned("gpu-8b.yaml", tmp_path, model_folder).config.engine
    assert engine.vllm == {"dtype": "bfloat16", "gpu_memory_utilization": 0.9}
    assert engine.concurrency is None


def test_replicas_on_a_cluster_get_the_gpus_that_their_arguments_need(tmp_path: Path, model_folder: Path) -> None:
    settings = planned("ray-cluster.yaml", tmp_path, model_folder).config.engine
    assert settings.ray == RayConfig(address="auto", replicas=8)
    assert gpus_needed(settings) == 4


def test_eight_gpus_hold_replicas_of_the_policy_and_then_one_judge(tmp_path: Path, model_folder: Path) -> None:
    plan = planned("8xgpu-8b-with-70b-judge.yaml", tmp_path, model_folder)
    [judge] = plan.judge_models
    policy, of_judge = plan.config.engine, plan.own_settings[judge]
    assert policy.ray is not None
    assert (policy.ray.replicas, policy.ray.gpus_per_replica) == (8, 1)
    assert (of_judge.ray, of_judge.vllm["tensor_parallel_size"], of_judge.max_model_len) == (None, 8, 8192)
