"""The judges that a run file or a command names."""

import shutil
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.inference.servers import resolve_judges


def test_a_panel_has_each_model_once(model_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    for names in ([str(model_folder)] * 2, [str(model_folder), str(other)]):
        with pytest.raises(CaiError, match=r"judge\.model: '.*model' and '.*' are the same model"):
            resolve_judges(names)
    (other / "model.safetensors").write_text("{ }")
    assert resolve_judges([str(model_folder), str(other)]) == [model_folder, other]


@pytest.mark.real
def test_the_prepared_model_pads_with_a_token_that_ends_no_turn(real_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_model)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 8192
