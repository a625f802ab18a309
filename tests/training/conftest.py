"""One thread for all tests of training, unless OMP_NUM_THREADS asks for more."""

import os
from collections.abc import Iterator

import pytest
import torch

from cai.training.online import keep_vllm_out_of_trl


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """A tiny model gains nothing from more threads, and they wait long for each other where other processes run."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_vllm_in_trl() -> None:
    """As when an online stage trains, also where a test imports trl's trainers first."""
    keep_vllm_out_of_trl()
