"""One engine in this process for all tests that ask one: starting vLLM takes longer than they do."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cai.inference.engine import EngineConfig
from cai.inference.vllm import VllmEngine
from cai.training.ppo.sampling import VllmSampler
from cai.training.settings import PPOConfig
from tests.faults.test_unsafe_folders import plant

CONTEXT = 512  # tokens of a request with its answer, of every engine that is compared


class Trapped(NamedTuple):
    """The real model's weights in a folder with Python and pickles that write `marker` when they run."""

    folder: Path
    marker: Path


@pytest.fixture(scope="session")
def trapped(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trapped:
    folder = tmp_path_factory.mktemp("trapped")
    marker = folder / "ran"
    return Trapped(plant(real_model, folder / "model", marker), marker)


@pytest.fixture(scope="session")
def engine(trapped: Trapped) -> Iterator[VllmEngine]:
    engine = VllmEngine(trapped.folder, "real", EngineConfig(max_model_len=CONTEXT, concurrency=8))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def sampler(engine: VllmEngine, real_model: Path) -> VllmSampler:
    """PPO's sampler, kept as long as the engine: one that vLLM shuts down takes all of its process with it."""
    return VllmSampler(real_model, PPOConfig(stage="ppo", use_vllm=True, max_length=256), 4)
