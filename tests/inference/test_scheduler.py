import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.inference.scheduler import run_concurrently


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 8))
def test_results_keep_their_order_and_no_more_than_the_limit_are_alive(delays: list[int], limit: int) -> None:
    alive = most = 0

    async def work(item: tuple[int, int]) -> int:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        for _ in range(item[1] + 1):
            await asyncio.sleep(0)
        alive -= 1
        return item[0] * 10

    async def collect() -> list[tuple[tuple[int, int], int]]:
        return [pair async for pair in run_concurrently(work, list(enumerate(delays)), limit)]

    assert asyncio.run(collect()) == [((i, d), i * 10) for i, d in enumerate(delays)]
    assert most == min(limit, len(delays))


def test_a_slow_example_does_not_hold_up_the_others() -> None:
    finished: list[int] = []

    async def work(item: int) -> int:
        await asyncio.sleep(0.2 if item == 0 else 0.001)
        finished.append(item)
        return item

    async def collect() -> list[int]:
        return [result async for _, result in run_concurrently(work, range(20), 2)]

    assert asyncio.run(collect()) == list(range(20))
    assert finished[-1] == 0


def test_the_first_error_cancels_the_rest() -> None:
    cancelled = []

    async def work(item: int) -> None:
        if item == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    async def collect() -> None:
        async for _ in run_concurrently(work, range(10), 3):
            pass

    with pytest.raises(ValueError, match="one"):
        asyncio.run(collect())
    assert sorted(cancelled) == [0, 2]
