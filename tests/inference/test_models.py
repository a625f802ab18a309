from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.inference import models
from cai.inference.models import resolve_model


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


def test_an_unknown_name_tells_what_is_expected() -> None:
    with pytest.raises(CaiError, match="expected smollm2-135m, a folder, or a Hub id"):
        resolve_model("no-such-model")


def test_the_small_model_must_be_prepared_first() -> None:
    with pytest.raises(CaiError, match="run `cai models prepare` once"):
        resolve_model("smollm2-135m")


def test_a_fingerprint_follows_the_content(model_folder: Path, tmp_path: Path) -> None:
    import shutil

    first = models.folder_fingerprint(model_folder)
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    assert models.folder_fingerprint(copy) == first
    (copy / "model.safetensors").write_text("{ }")
    assert models.folder_fingerprint(copy) != first
    (model_folder / "README.md").write_text("a card is no part of the model")
    assert models.folder_fingerprint(model_folder) == first
