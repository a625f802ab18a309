"""A model folder's Python and pickles are not run, also where they stand beside sound weights."""

import ast
import json
import pickle
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.manifest import exclusive
from cai.inference.engine import EngineConfig
from cai.inference.models import SAFE_LOADING, loading_options, resolve_model
from cai.inference.vllm_settings import engine_arguments
from cai.runs.find import find_policy
from cai.runs.plan import make_plan, start_folder
from cai.training.reward_model import read_about
from cai.training.settings import SFTConfig
from cai.training.trl_stage import model_options, plain_options
from tests.conftest import ROOT, write_workspace

CODE = """
from pathlib import Path
Path({marker!r}).write_text("the folder's Python ran")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""


class Exploit:
    """A pickle that writes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.marker, "a pickle ran")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def planted(tmp_path: Path, tiny_model: Path, marker: Path) -> Path:
    """The tiny model with traps beside its safetensors."""
    return plant(tiny_model, tmp_path / "planted", marker)


def plant(model: Path, folder: Path, marker: Path) -> Path:
    """A copy of a model with `auto_map` Python and a pickle of weights beside its safetensors."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for weights in model.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights.resolve())
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    for name in ("pytorch_model.bin", "model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps({"weight": Exploit(marker)}))
    maps = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    for file in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(settings | {"auto_map": maps}), encoding="utf-8")
    return folder


def test_the_traps_work(planted: Path, marker: Path) -> None:
    with (planted / "model.bin").open("rb") as file:
        pickle.load(file)
    assert marker.exists()


def test_neither_runs_when_a_model_is_trained_or_scored(planted: Path, marker: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from cai.inference.chat_template import load_tokenizer

    assert resolve_model(str(planted)) == planted
    load_tokenizer(planted)
    AutoModelForCausalLM.from_pretrained(planted, **SAFE_LOADING)
    AutoModelForSequenceClassification.from_pretrained(planted, num_labels=1, **SAFE_LOADING)
    assert not marker.exists()


def test_pickles_are_not_read_in_place_of_missing_safetensors(planted: Path, marker: Path) -> None:
    from transformers import AutoModelForCausalLM

    (planted / "model.safetensors").unlink()
    with pytest.raises(CaiError, match=r"holds no \*\.safetensors"):
        resolve_model(str(planted))
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(planted, **SAFE_LOADING)
    assert not marker.exists()


def test_vllm_gets_the_same_settings(planted: Path, marker: Path) -> None:
    settings = engine_arguments(planted, EngineConfig(max_model_len=64, concurrency=1))
    assert settings["trust_remote_code"] is False
    assert settings["load_format"] == "safetensors"
    assert not marker.exists()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')


def test_an_adapter_is_no_model(planted: Path) -> None:
    adapter(planted)
    with pytest.raises(CaiError, match="holds an adapter, not a model"):
        resolve_model(str(planted))


OUTSIDE = ["w.bin", "../outside.safetensors", "/outside.safetensors", "deeper/w.safetensors", 3]


def sharded(folder: Path, shard: object) -> Path:
    """Let a folder's weights be those that an index names, with a decoy beside it."""
    weights = folder / "model.safetensors"
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return weights.rename(folder / "decoy.safetensors")


@pytest.mark.parametrize("shard", OUTSIDE)
def test_an_index_of_shards_that_names_a_pickle_or_a_file_elsewhere_is_refused(planted: Path, shard: object) -> None:
    sharded(planted, shard)
    with pytest.raises(CaiError, match=r"index\.json: names the weights .* expected a \*\.safetensors file beside it"):
        resolve_model(str(planted))
    with pytest.raises(CaiError, match="names the weights"):
        loading_options(planted)


@pytest.mark.parametrize("shard", ["w.bin", "adapter_model.bin", "deeper/w.safetensors"])
@pytest.mark.parametrize("part", ["", "text_config"])
def test_so_is_a_config_that_names_its_weights(planted: Path, shard: str, part: str) -> None:
    settings = json.loads((planted / "config.json").read_text(encoding="utf-8"))
    named = {"transformers_weights": shard}
    (planted / "config.json").write_text(json.dumps(settings | ({part: named} if part else named)), encoding="utf-8")
    with pytest.raises(CaiError, match=r"config\.json: names the weights"):
        resolve_model(str(planted))


def test_shards_beside_the_index_are_loaded(planted: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(planted, **loading_options(planted))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for file in planted.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert resolve_model(str(tmp_path / "shards")) == tmp_path / "shards"


@pytest.mark.parametrize("change", [partial(sharded, shard="w.bin"), adapter])
def test_the_policy_of_a_received_stage_or_run_is_checked_as_a_model_is(
    tmp_path: Path, planted: Path, change: Callable[[Path], object]
) -> None:
    (tmp_path / "stage.json").write_text("{}", encoding="utf-8")
    shutil.copytree(planted, tmp_path / "model")
    assert find_policy(str(tmp_path), tmp_path).policy.folder == tmp_path / "model"
    (tmp_path / "work").mkdir()
    run_file = write_workspace(tmp_path / "work", tmp_path / "model", extra="train: [{stage: dpo}]\n")
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    with exclusive(plan.folder.path):
        start_folder(plan, replace=False)
    shutil.copytree(planted, plan.folder.train / "1-dpo/model")
    shutil.copy(tmp_path / "stage.json", plan.folder.train / "1-dpo")
    assert find_policy(str(plan.folder.path), tmp_path).policy.folder == plan.folder.train / "1-dpo/model"
    for home in (tmp_path, plan.folder.train / "1-dpo"):
        change(home / "model")
        with pytest.raises(CaiError, match=r"names the weights|holds an adapter"):
            find_policy(str(home if home == tmp_path else plan.folder.path), tmp_path)


@pytest.mark.parametrize("member", ["../outside", "/outside", "linked", 3])
def test_the_members_of_a_reward_model_are_in_its_folder(tmp_path: Path, tiny_model: Path, member: object) -> None:
    folder = tmp_path / "reward"
    folder.mkdir()
    (folder / "linked").symlink_to(tiny_model)
    about = {"members": [member], "base": None, "vocabulary": ""}
    (folder / "reward.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(CaiError, match=r"reward\.json: members: expected folders beside it"):
        read_about(folder)


def test_every_loader_says_that_it_trusts_no_code(tiny_model: Path) -> None:
    """`from_pretrained` of transformers, by its keywords; those of LoraConfig and GenerationConfig read a JSON file alone."""
    assert SAFE_LOADING["trust_remote_code"] is False
    for options in (model_options, plain_options):
        assert SAFE_LOADING.items() <= options(SFTConfig(stage="sft"), tiny_model).items()
    for path in sorted((ROOT / "cai").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
                and ast.unparse(node.func.value) not in ("LoraConfig", "GenerationConfig")
            ):
                keywords = {keyword.arg or ast.unparse(keyword.value).partition("(")[0] for keyword in node.keywords}
                if "options" in keywords:  # the ones that `loading_options` makes of SAFE_LOADING
                    assert set(re.findall(r"^ +options = (\w+)\(", source, re.MULTILINE)) == {"loading_options"}, path
                    continue
                safe = {
                    "trust_remote_code",
                    "SAFE_LOADING",
                    "loading_options",
                    "trl_stage.model_options",
                    "model_options",
                    "plain_options",
                }
                assert keywords & safe, f"{path}:{node.lineno}"
