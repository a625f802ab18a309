"""One thread for all tests of training, unless OMP_NUM_THREADS asks for more."""

import pytest

from cai.training.online import keep_vllm_out_of_trl


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_training(one_torch_thread: None) -> None:
    """Where other processes run, several threads wait long for each other."""


@pytest.fixture(scope="session", autouse=True)
def no_vllm_in_trl() -> None:
    """As when an online stage trains, also where a test imports trl's trainers first."""
    keep_vllm_out_of_trl()
