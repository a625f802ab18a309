from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest

from cai.config.errors import CaiError
from cai.config.locate import find_constitution_file, is_hub_id, local_file
from cai.data.files import rows


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Hub with one dataset of the splits `splits`; it can be taken off the network."""
    state = SimpleNamespace(splits=["train", "test"], commit="c0ffee", offline=False, loaded=0)

    def dataset_info(_: object, repo: str) -> Any:
        if state.offline:
            raise ConnectionError("no route to the Hub")
        return SimpleNamespace(sha=state.commit)

    def load_dataset(repo: str, split: str, revision: str) -> datasets.Dataset:
        state.loaded += 1
        return datasets.Dataset.from_list([{"prompt": f"{repo} {split} {revision}", "tags": ["t"]}])

    def hf_hub_download(repo: str, file: str, repo_type: str) -> str:
        (tmp_path / "one.jsonl").write_text(f'{{"prompt": "{repo} {file} {repo_type}"}}\n')
        return str(tmp_path / "one.jsonl")

    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repo, revision: state.splits)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def prompt(path: Path) -> str:
    [(_, value)] = rows(path)
    return str(value["prompt"])


def test_a_file_that_is_there_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("{}\n")
    assert local_file("org/name") == Path("org/name")


def test_a_split_is_downloaded_once_for_each_commit(hub: SimpleNamespace) -> None:
    path = local_file("org/name")
    assert (prompt(path), path.suffix, hub.loaded) == ("org/name train c0ffee", ".parquet", 1)
    assert (local_file("org/name:train"), hub.loaded) == (path, 1)
    assert prompt(local_file("org/name:test")) == "org/name test c0ffee"
    hub.commit = "decaf"
    assert prompt(local_file("org/name")) == "org/name train decaf"


def test_one_file_of_a_repository_is_taken_as_it_is(hub: SimpleNamespace) -> None:
    assert prompt(local_file("Anthropic/hh-rlhf:harmless-base/test.jsonl.gz")) == (
        "Anthropic/hh-rlhf harmless-base/test.jsonl.gz dataset"
    )


def test_the_only_split_needs_no_name_and_several_need_one(hub: SimpleNamespace) -> None:
    hub.splits = ["validation"]
    assert prompt(local_file("org/name")) == "org/name validation c0ffee"
    hub.splits = ["train_sft", "train_prefs"]
    with pytest.raises(
        CaiError, match="several splits; choose one of train_sft, train_prefs, such as org/name:train_sft"
    ):
        local_file("org/name")
    with pytest.raises(CaiError, match="org/name: no split 'test'"):
        local_file("org/name:test")


def test_without_a_connection_the_cache_serves_and_nothing_else(hub: SimpleNamespace) -> None:
    path = local_file("org/name")
    hub.offline = True
    assert local_file("org/name") == path
    with pytest.raises(
        CaiError, match="org/name:test: no such file, and the Hub has no such dataset or is unreachable: no route"
    ):
        local_file("org/name:test")


@pytest.mark.parametrize("name", ["pairs.jsonl", "data/pairs.jsonl", "./a/b", "a/b/c", "/nowhere/at/all", "a b/c"])
def test_a_name_that_can_be_no_data_set_is_a_missing_file(hub: SimpleNamespace, name: str) -> None:
    assert not is_hub_id(name)
    with pytest.raises(CaiError, match="no such file; expected one, or a dataset of the Hub such as org/name:split"):
        local_file(name)


def test_a_shipped_constitution_is_found_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()  # such as a run's folder
    found = find_constitution_file("constitution", "plain", tmp_path / "run.yaml")
    assert found == find_constitution_file("constitution", "constitutions/plain.yaml", tmp_path / "run.yaml")
    assert found.is_file()
    with pytest.raises(CaiError, match=r"run\.yaml: constitution: 'harmles' not found .*did you mean 'harmless'\?$"):
        find_constitution_file("constitution", "harmles", tmp_path / "run.yaml")


def test_a_file_beside_the_run_file_comes_before_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("name: mine\n", encoding="utf-8")
    assert find_constitution_file("constitution", "plain", tmp_path / "run.yaml") == tmp_path / "plain"
