"""A reward model refers to the model that it was trained from, and reads no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cai.config.errors import CaiError
from cai.inference.models import folder_fingerprint
from cai.training.reward_folder import find_base, link_base
from cai.training.reward_model import RewardModel, read_about
from cai.training.stage import StageSpec
from tests.conftest import train_here
from tests.training.test_reward import config, planted

TURNS = [[1, 70, 71, 80, 2], [1, 90, 2]]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `policy`, and `stage/model`, a reward model trained from it."""
    home = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_model, home / "policy")
    train_here(StageSpec(config(holdout=0.0), planted(home / "pairs.jsonl", 8), home / "policy", home / "stage"))
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, whose reward model refers to the policy in the copy."""
    shutil.copytree(trained, tmp_path / "home", symlinks=True)
    (tmp_path / "home/stage/model/base").unlink()
    link_base(tmp_path / "home/stage/model", tmp_path / "home/policy", tmp_path / "home/stage")
    return tmp_path / "home"


def test_the_base_is_a_link_and_scores_as_a_copy_does(trained: Path, home: Path) -> None:
    reward = trained / "stage/model"
    assert (reward / "base").is_symlink() and (reward / "base").resolve() == trained / "policy"
    copied = Path(shutil.copytree(reward, home / "copied"))  # follows links
    assert not (copied / "base").is_symlink()
    assert folder_fingerprint(copied) == folder_fingerprint(reward)
    assert torch.equal(RewardModel(copied).scores(TURNS), RewardModel(reward).scores(TURNS))


def test_a_base_that_is_gone_or_another_is_named_with_what_to_do(home: Path) -> None:
    reward = home / "stage/model"
    config_json = home / "policy/config.json"
    text = config_json.read_text()
    config_json.write_text(json.dumps({**json.loads(text), "rms_norm_eps": 1e-3}))
    mend = rf"put it back there, or copy it to {reward}/base$"
    with pytest.raises(CaiError, match=rf"trained from, at {home}/policy: another model is there; {mend}"):
        RewardModel(reward)
    config_json.write_text(text)
    (home / "policy").rename(home / "moved")
    with pytest.raises(CaiError, match=rf"trained from, at {home}/policy: no such model; {mend}"):
        RewardModel(reward)
    (reward / "base").unlink()
    shutil.copytree(home / "moved", reward / "base")
    assert RewardModel(reward).scores(TURNS).isfinite().all()


def test_a_copy_of_another_base_is_refused_though_the_folder_looks_the_same(home: Path) -> None:
    copied = Path(shutil.copytree(home / "stage/model", home / "copied"))
    weights = copied / "base/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert folder_fingerprint(copied) == folder_fingerprint(home / "stage/model")
    with pytest.raises(CaiError, match="another model is there"):
        find_base(copied, read_about(copied)["base"])


def test_within_a_run_the_link_survives_a_move_of_the_run(home: Path, tiny_model: Path) -> None:
    run = home / "run"
    for folder in ("train/1-sft", "train/2-reward/model", "seeds/2/train/2-reward/model"):
        (run / folder).mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    shutil.copytree(tiny_model, run / "train/1-sft/model")
    stages = ("train/2-reward", "seeds/2/train/2-reward")
    for stage in stages:
        link_base(run / stage / "model", run / "train/1-sft/model", run / stage)
    run.rename(home / "renamed")
    for stage in stages:
        find_base(home / "renamed" / stage / "model", folder_fingerprint(tiny_model))
