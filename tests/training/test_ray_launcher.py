"""The launcher `ray`: Ray Train's workers do what one process does, and end as it does."""

import json
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM

from cai.config.errors import CaiError
from cai.inference import ray_cluster
from cai.training.checks import launched_gpus
from cai.training.ray_worker import Job, check_node
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec, follow, worker_python
from tests.conftest import train_here
from tests.training.test_distributed import STAGES, lines, rating, specifications
from tests.training.test_settings import dpo, preferences

SOON = 60.0
STAGES_HERE = ("dpo", "rated")


@pytest.fixture(scope="module")
def trained(cluster: str, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, list[Any], str]:
    """One start of Ray Train for a stage that learns from data, one that asks for rewards, and one that cannot train.

    Returns: the folder with `one` and `ray`, the events, and the error.
    """
    folder, arguments = tmp_path_factory.mktemp("ray"), list[str]()
    specs = [spec for spec in specifications(folder, tiny_model) if spec.folder.name in STAGES_HERE]
    for spec in specs:
        train_here(spec, ask=rating)
    specs.append(replace(specs[0], data=preferences(folder / "one.jsonl", 1), folder=folder / "one/row"))
    for spec in specs:
        half = {"per_device_train_batch_size": spec.settings.per_device_train_batch_size // 2}
        place = folder / "ray" / spec.folder.name
        place.mkdir(parents=True)
        replace(spec, settings=spec.settings.model_copy(update=half), folder=place).write(place / "stage.json")
        arguments.append(str(place / "stage.json"))
    events: list[dict[str, Any]] = []
    command = [*worker_python(f"ray --workers 2 --address {cluster}"), str(STAGES), *arguments]
    with pytest.raises(CaiError) as caught:
        follow(command, folder / "train.log", events.append, rating)
    return folder, events, str(caught.value)


@pytest.mark.slow
def test_two_workers_give_the_curves_of_one_process(trained: tuple[Path, list[Any], str]) -> None:
    folder, events, _ = trained
    steps = [event["step"] for event in events if "step" in event]
    assert steps == [line["step"] for stage in STAGES_HERE for line in lines(folder / "ray" / stage)]
    for stage in STAGES_HERE:
        for a, b in zip(lines(folder / "one" / stage), lines(folder / "ray" / stage), strict=True):
            for key in a:
                if not key.startswith("seconds") and key not in ("accuracy", "margin", "mean_reward"):
                    assert b[key] == pytest.approx(a[key], abs=1e-4, rel=1e-3), key
        AutoModelForCausalLM.from_pretrained(folder / "ray" / stage / "model")
        processes = json.loads((folder / "ray" / stage / "processes.json").read_text())
        assert processes == {"processes": 2, "fsdp": False}


@pytest.mark.slow
def test_an_error_of_a_worker_is_its_own_words(trained: tuple[Path, list[Any], str]) -> None:
    folder, _, error = trained
    assert error == "dpo: 1 row to train on, for 2 processes; start fewer"
    last = (folder / "train.log").read_text().splitlines()[-1]
    assert re.fullmatch(f"launcher: ray: process [01] on node {socket.gethostname()} ended with status 2", last)
    assert not (folder / "ray/row/ray").exists()


@pytest.mark.slow
def test_a_signal_ends_the_ray_that_was_started_with_its_workers(tmp_path: Path, tiny_model: Path) -> None:
    spec = StageSpec(SFTConfig(stage="sft"), preferences(tmp_path / "pairs.jsonl"), tiny_model, tmp_path)
    spec.write(tmp_path / "stage.json")
    waits = ["-c", 'import time; print(\'{"at": "work"}\', flush=True); time.sleep(60)', str(tmp_path / "stage.json")]
    command = [*worker_python("ray --workers 1"), *waits]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert json.loads(launcher.stdout.readline()) == {"at": "work"}
        children = psutil.Process(launcher.pid).children(recursive=True)
        assert any("time.sleep(60)" in " ".join(child.cmdline()) for child in children)
        begun = time.monotonic()
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(SOON) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 4  # two, and a busy machine
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def test_a_node_without_the_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = f"launcher: ray: node {socket.gethostname()}"
    for name in ("data.jsonl", "model", "dpo"):
        (tmp_path / name).mkdir()
    stage_file = tmp_path / "dpo/stage.json"
    StageSpec(dpo(), tmp_path / "data.jsonl", Path("model"), tmp_path / "dpo").write(stage_file)
    job = Job.here(["-m", "cai.training.worker", str(stage_file)], None, None)
    check_node(job)
    for version in ({"cai": "0.0.1"}, {"python": "3.9"}):
        with pytest.raises(CaiError, match=f"^{node} has (cai|python) .*, the launcher's .*; install the same"):
            check_node(replace(job, versions=job.versions | version))
    with pytest.raises(CaiError, match=f"^{node} has no folder {tmp_path}/other; put it on storage"):
        check_node(replace(job, folder=tmp_path / "other"))
    with pytest.raises(CaiError, match=f"^{node} has another folder {tmp_path}/dpo than the launcher's node"):
        check_node(replace(job, digest="of another"))
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(CaiError, match=f"^{node} has no {tmp_path}/model; put it on storage"):
        check_node(job)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"^launcher: ray: the following arguments are required: --workers; expected a command such as ray"),
        ("--workers 0", r"^launcher: ray: argument --workers: expected a whole number from 1 to 100000, found '0'"),
        ("--workers 2 --gpus-per-worker 0.5", r"argument --gpus-per-worker: expected a whole number from 0 to 1"),
        ("--workers 2 --replicas 3", r"^launcher: ray: unrecognized arguments: --replicas 3"),
        ("--work 2", r"required: --workers"),
    ],
)
def test_a_wrong_option_is_named(options: str, message: str) -> None:
    with pytest.raises(CaiError, match=message):
        worker_python(f"ray {options}")


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    with pytest.raises(CaiError, match=r"^Ray is not installed: install it with `pip install 'cai-rlaif\[ray\]'`$"):
        worker_python("ray --workers 2")


def test_an_address_without_a_ray_is_an_error_on_one_line(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(
            CaiError, match=f"^launcher: ray --address: {address} cannot be reached: Connection refused"
        ):
            follow([*worker_python(f"ray --workers 2 --address {address}"), "x"], tmp_path / "log", print)


def test_its_gpus_on_this_machine_are_at_most_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert launched_gpus("ray --workers 2") == 2
    assert launched_gpus("ray --workers 16 --address auto") == 4
