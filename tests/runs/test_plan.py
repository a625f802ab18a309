"""Which models a run file names for which part of a run, and the settings of each one's engine."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.inference.engine import EndpointConfig, EngineConfig
from cai.inference.models import Address, Server
from cai.inference.servers import resolve_endpoints
from cai.runs.plan import Plan, iteration, make_plan, manifest
from tests.conftest import write_workspace
from tests.inference.test_endpoints import Service


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


def test_a_refused_engine_argument_is_an_error_of_its_section(tmp_path: Path, model_folder: Path) -> None:
    other = another(tmp_path, model_folder, "judge")
    with pytest.raises(CaiError, match=r"judge.engine.vllm.worker_cls: lets vLLM import code"):
        planned(tmp_path, model_folder, f"judge: {{model: {other}, engine: {{vllm: {{worker_cls: a.B}}}}}}\n")


def test_the_eval_judge_that_is_the_runs_judge_has_its_engine(tmp_path: Path, model_folder: Path) -> None:
    judge = another(tmp_path, model_folder, "judge")
    plan = planned(tmp_path, model_folder, f"judge: {{model: {judge}, engine: {{max_model_len: 512}}}}\n")
    assert plan.eval_judge == judge
    assert plan.own_settings == {judge: EngineConfig(max_model_len=512)}


# Servers in place of models in this process


@pytest.fixture
def services() -> Iterator[list[Service]]:
    opened = [Service(["big", "small"]), Service(["big", "other"])]
    yield opened
    for service in opened:
        service.close()


TRAIN = "train: [{stage: dpo}]\n"


def on(*services: Service, more: str = "") -> str:
    return f"engine: {{endpoints: [{', '.join(service.url for service in services)}]{more}}}\n"


def test_a_run_without_training_needs_no_folder(tmp_path: Path, services: list[Service]) -> None:
    for name, extra in ((f"{services[0].url}#big", ""), ("big", on(services[0]))):
        plan = (
            planned(tmp_path, Path(name), extra) if extra else make_plan(served_run(tmp_path, name), [], None, tmp_path)
        )
        expected = Server.at(services[0].url, "big")
        assert plan.model == plan.generator == plan.reviser == plan.eval_judge == expected
        assert plan.judge_models == [expected]


def served_run(folder: Path, model: str) -> Path:
    run_file = write_workspace(folder, folder)
    run_file.write_text(run_file.read_text(encoding="utf-8").replace(f"model: {folder}\n", f"model: '{model}'\n"))
    return run_file


def test_a_model_that_is_trained_answers_on_its_servers_and_is_trained_from_its_folder(
    tmp_path: Path, model_folder: Path, services: list[Service]
) -> None:
    plan = planned(tmp_path, model_folder, TRAIN + on(*services, more=", served_model_name: big"))
    both = Server((Address(services[0].url), Address(services[1].url)), "big")
    assert (plan.model, plan.before) == (model_folder, model_folder)
    assert plan.generator == plan.reviser == plan.eval_judge == both
    later = iteration(replace(plan, config=plan.config.model_copy(update={"iterations": 2})), 2, tmp_path / "policy")
    assert later.model == later.generator == tmp_path / "policy"
    assert later.judge_models == [both]


def test_where_its_servers_are_does_not_change_what_a_run_is(
    tmp_path: Path, model_folder: Path, services: list[Service]
) -> None:
    one, two = (
        manifest(planned(tmp_path, model_folder, TRAIN + on(*of, more=", served_model_name: big")))
        for of in (services[:1], services)
    )
    assert one.pop("where") != two.pop("where")  # which is recorded, and does not decide
    assert one == two
    assert one["generator"] != one["model"]


def test_training_a_servers_model_is_an_error(tmp_path: Path, services: list[Service]) -> None:
    run_file = served_run(tmp_path, f"{services[0].url}#big")
    run_file.write_text(run_file.read_text(encoding="utf-8") + TRAIN)
    with pytest.raises(
        CaiError, match=r"run.yaml: model 'http.*#big': `train:` trains a model's folder; name the folder"
    ):
        make_plan(run_file, [], None, tmp_path)


def test_each_part_of_a_run_may_have_servers_of_its_own(
    tmp_path: Path, model_folder: Path, services: list[Service]
) -> None:
    extra = f"judge: {{model: other, {on(services[1]).strip()}}}\nrevise: {{model: small, {on(services[0]).strip()}}}\n"
    plan = planned(tmp_path, model_folder, extra + on(services[0], more=", served_model_name: big"))
    assert plan.generator == Server.at(services[0].url, "big")
    assert plan.reviser == Server.at(services[0].url, "small")
    assert plan.judge_models == [plan.eval_judge] == [Server.at(services[1].url, "other")]


def test_servers_of_the_runs_model_are_not_those_of_its_judge(
    tmp_path: Path, model_folder: Path, services: list[Service]
) -> None:
    judge = another(tmp_path, model_folder, "judge")
    plan = planned(
        tmp_path, model_folder, f"judge: {{model: {judge}}}\n" + on(*services, more=", served_model_name: big")
    )
    assert plan.judge_models == [judge]


def test_a_model_is_named_on_its_servers_or_is_the_only_one_there(services: list[Service]) -> None:
    urls = [service.url for service in services]
    both = Server((Address(urls[0]), Address(urls[1])), "big")
    assert resolve_endpoints("big", EngineConfig(endpoints=urls)) == both
    assert resolve_endpoints("x", EngineConfig(endpoints=urls, served_model_name="big")) == both
    with pytest.raises(
        CaiError, match=r"no server lists 'x', and they list several .*served_model_name: big, other, small"
    ):
        resolve_endpoints("x", EngineConfig(endpoints=urls))
    with pytest.raises(CaiError, match=rf"engine.endpoints: {urls[1]} has no model 'small': it has"):
        resolve_endpoints("small", EngineConfig(endpoints=urls))
    services[0].models = services[1].models = ["only"]
    assert resolve_endpoints("x", EngineConfig(endpoints=urls)).name == "only"


def test_a_server_that_is_down_at_the_start_is_a_warning_if_another_is_up(
    services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    urls = ["http://127.0.0.1:9/v1", services[0].url]
    assert resolve_endpoints("big", EngineConfig(endpoints=urls)).addresses == (Address(urls[0]), Address(urls[1]))
    assert f"warning: engine.endpoints: {urls[0]}: " in capsys.readouterr().err
    with pytest.raises(CaiError, match=r"engine.endpoints: no server can be reached: http://127.0.0.1:9/v1: "):
        resolve_endpoints("big", EngineConfig(endpoints=urls[:1]))


def test_each_endpoint_may_have_a_key(services: list[Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "my-key")
    endpoints: list[str | EndpointConfig] = [EndpointConfig(url=services[0].url, key_env="MINE"), services[1].url]
    server = resolve_endpoints("big", EngineConfig(endpoints=endpoints))
    assert [address.key_env for address in server.addresses] == ["MINE", None]
    endpoints = [EndpointConfig(url=services[0].url, key_env="NOT_SET")]
    with pytest.raises(CaiError, match=r"key_env: the environment variable NOT_SET is not set"):
        resolve_endpoints("big", EngineConfig(endpoints=endpoints))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8000", "expected an address such as"),
        ("http://localhost:8000/v1#big", "engine.served_model_name names the model there"),
        ("http://me:secret@localhost/v1", "holds a password"),
    ],
)
def test_an_endpoint_that_is_no_address_is_an_error(address: str, message: str) -> None:
    with pytest.raises(CaiError, match=message) as error:
        resolve_endpoints("big", EngineConfig(endpoints=[address]))
    assert "secret" not in str(error.value)


def test_two_ways_to_name_a_server_are_one_too_many(tmp_path: Path, services: list[Service]) -> None:
    run_file = served_run(tmp_path, f"{services[0].url}#big")
    run_file.write_text(run_file.read_text(encoding="utf-8") + on(services[1]))
    with pytest.raises(CaiError, match=r"is on a server, and engine.endpoints names servers too"):
        make_plan(run_file, [], None, tmp_path)
