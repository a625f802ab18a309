import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.inference import models
from cai.inference.models import loading_options, prepare_small_model, resolve_model
from cai.training.reward_folder import find_reward_model, find_run_reward


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_checked_before_it_is_used(model_folder: Path) -> None:
    assert resolve_model(str(model_folder)) == model_folder
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(CaiError, match=r"holds no \*\.safetensors"):
        resolve_model(str(model_folder))
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(CaiError, match="is not a model folder: a tokenizer is missing"):
        resolve_model(str(model_folder))


@pytest.mark.parametrize("name", ["localhost:8000", "localhost:8000/v1", "10.0.0.1:80/v1#small"])
def test_an_address_without_a_scheme_is_told_how_servers_are_named(name: str) -> None:
    host = name.partition("/")[0]
    with pytest.raises(CaiError, match=rf"no such folder; a server is named by its URL .* http://{host}/v1#NAME"):
        resolve_model(name)


def test_a_config_whose_text_part_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": "none"}')
    with pytest.raises(CaiError, match=r'config\.json: text_config: expected an object, found "none"$'):
        loading_options(tmp_path)


def test_an_unknown_name_is_an_error_with_what_is_expected() -> None:
    with pytest.raises(CaiError, match="expected smollm2-135m, a folder, or a full Hub id, org/model"):
        resolve_model("no-such-model")


@pytest.mark.parametrize(
    ("name", "reward", "meant"),
    [
        ("runs/dop/model", False, "runs/dpo/model"),
        ("runs/dpo/modle", False, "runs/dpo/model"),
        ("runs/dpo", False, "runs/dpo/model"),
        ("dpo/model", False, "runs/dpo/model"),
        ("quick/model", False, "runs/quick/train/2-ppo/model"),
        ("runs/quik", False, "runs/quick/train/2-ppo/model"),
        ("quick/model", True, "runs/quick/train/1-reward/model"),
        ("rmm", True, "runs/rm/model"),
        ("./rm", True, "runs/rm/model"),
        ("mine/bsae", False, "mine/base"),
        ("org/model", False, None),
        ("rm", False, None),  # a reward model, where a policy is asked for
        ("runs/rmm", False, None),
    ],
)
def test_a_mistyped_model_is_an_error_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reward: bool, meant: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    policies = ["runs/dpo/model", "runs/quick/train/2-ppo/model", "mine/base"]
    rewards = ["runs/rm/model", "runs/quick/train/1-reward/model"]
    for folder in (*policies, *rewards):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{}")
    for folder in rewards:
        (Path(folder) / "reward.json").write_text("{}")
    with pytest.raises(CaiError) as raised:
        find_reward_model("--reward", name) if reward else resolve_model(name)
    assert re.findall(r"did you mean '(.*)'\?$", str(raised.value)) == ([meant] if meant else [])
    assert "no such folder" in str(raised.value) or "is not a model folder" in str(raised.value)
    if reward and meant:
        with pytest.raises(CaiError, match=re.escape(f"did you mean '{meant}'?")):
            find_run_reward("train[0].reward", name, tmp_path / "run.yaml")


def test_the_small_model_must_be_prepared_first() -> None:
    with pytest.raises(CaiError, match="run `cai models prepare` once"):
        resolve_model("smollm2-135m")


def test_what_a_killed_preparation_left_is_removed_and_that_of_one_at_work_stays(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def convert(_: Path, file: str, target: Path) -> None:
        names.append(target.parent.name)
        target.mkdir()

    monkeypatch.setattr(models, "_convert_gguf", convert)
    monkeypatch.setattr(models, "find_spec", lambda _: SimpleNamespace(origin=__file__))
    folder = prepare_small_model()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    assert names[0].endswith(f".{os.getpid()}.part")
    left = folder.with_name(names[0].replace(str(os.getpid()), dead.stdout.strip()))
    at_work = folder.with_name(names[0].replace(str(os.getpid()), str(os.getppid())))
    for path in (left, at_work):
        (path / "model").mkdir(parents=True)
    assert prepare_small_model() == folder
    assert set(folder.parent.iterdir()) == {folder, at_work}


def test_a_fingerprint_follows_the_content(model_folder: Path, tmp_path: Path) -> None:
    import shutil

    first = models.folder_fingerprint(model_folder)
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    assert models.folder_fingerprint(copy) == first
    (copy / "model.safetensors").write_text("{ }")
    assert models.folder_fingerprint(copy) != first
    (model_folder / "README.md").write_text("a card is no part of the model")
    assert models.folder_fingerprint(model_folder) == first


def test_a_large_file_is_read_once_for_as_long_as_it_is_the_same(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "LARGE", 10)
    monkeypatch.setattr(models, "LONG_READ", 10)
    weights = model_folder / "model.safetensors"
    weights.write_text("0123456789")
    first = models.folder_fingerprint(model_folder)
    assert "to identify it" in capsys.readouterr().err
    read = Path.open

    def unread(path: Path, *args: Any, **kwargs: Any) -> Any:
        assert path != weights, "read again"
        return read(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", unread)
        assert models.folder_fingerprint(model_folder) == first
    assert capsys.readouterr().err == ""
    beside = model_folder / "beside"
    beside.write_text("9876543210")
    os.utime(beside, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns))
    beside.rename(weights)  # another file of the same size and time
    assert models.folder_fingerprint(model_folder) != first
