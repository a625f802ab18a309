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
