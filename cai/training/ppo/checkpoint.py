"""PPO's checkpoints: trainable weights and the optimizer's state as safetensors. Imports torch: import this lazily."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

KEPT = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
State = tuple[int, float]
"""(updates done, the KL coefficient of the next)."""


def save(folder: Path, parameters: dict[str, Any], optimizer: Any, state: State) -> None:
    """Write `folder/update-N`, beside and renamed, and remove all but the last two."""
    target = folder / f"update-{state[0]:06d}"
    beside = target.with_suffix(".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    for name, p in parameters.items():
        tensors |= {f"{name}#{m}": optimizer.state[p][m].contiguous() for m in MOMENTS if p in optimizer.state}
    save_file(tensors, beside / "state.safetensors")
    (beside / "state.json").write_text(json.dumps({"update": state[0], "kl_coef": state[1]}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    for old in _complete(folder)[:-KEPT]:
        shutil.rmtree(old)


def restore(folder: Path, parameters: dict[str, Any], optimizer: Any, start: State) -> State:
    """Load the newest checkpoint into the parameters and the optimizer; returns its state, or `start` without one."""
    checkpoints = _complete(folder)
    if not checkpoints:
        return start
    tensors = load_file(checkpoints[-1] / "state.safetensors")
    for name, p in parameters.items():
        p.data.copy_(tensors[name])
        if f"{name}#step" in tensors:
            optimizer.state[p] = {m: tensors[f"{name}#{m}"].to(p.device if m != "step" else "cpu") for m in MOMENTS}
    state = json.loads((checkpoints[-1] / "state.json").read_text(encoding="utf-8"))
    return state["update"], state["kl_coef"]


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if path.suffix != ".part")
