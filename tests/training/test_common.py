import json
from pathlib import Path

import pytest

from cai.data.jsonl import write_rows
from cai.training.settings import DPOConfig
from cai.training.stage import StageSpec
from tests.conftest import train_here
from tests.training.policies import BETTER, WORSE, pair, preferred_by


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2, 20])
def test_every_update_learns_even_where_there_is_only_one(tmp_path: Path, tiny_model: Path, updates: int) -> None:
    data = tmp_path / "preferences.jsonl"
    write_rows(data, [pair(i, BETTER, WORSE) for i in range(4)])
    settings = DPOConfig(
        stage="dpo", num_train_epochs=updates, per_device_train_batch_size=4, learning_rate=1e-2, max_length=100
    )
    policy = train_here(StageSpec(settings, data, tiny_model, tmp_path / "dpo"))
    lines = [json.loads(line) for line in (tmp_path / "dpo/metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert len(rates) == updates
    warm_up = max(1, updates // 10)
    assert rates[:warm_up] == pytest.approx([1e-2 * (i + 1) / warm_up for i in range(warm_up)])
    assert rates[warm_up - 1 :] == sorted(rates[warm_up - 1 :], reverse=True)
    assert rates[-1] >= 1e-3 * (1 - 1e-6)
    assert preferred_by(policy) > preferred_by(tiny_model) + 0.01
