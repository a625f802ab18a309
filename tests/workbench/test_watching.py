import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.workbench import trial
from cai.workbench.trial import changes, once, restarted

Edit = Callable[[Path], object]


@pytest.fixture
def noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """How often edits of `c.yaml` and the folder `templates` are noticed in sixty polls, each made at its poll."""
    monkeypatch.setattr(trial, "POLL_SECONDS", 0)
    look = trial._contents

    def after(edits: dict[int, Edit]) -> int:
        (tmp_path / "c.yaml").write_text("one", encoding="utf-8")
        (tmp_path / "templates/few").mkdir(parents=True, exist_ok=True)
        (tmp_path / "templates/judge.jinja").write_text("one", encoding="utf-8")
        polls = itertools.count()

        def polled(paths: Sequence[Path]) -> dict[Path, bytes | None]:
            if (number := next(polls)) == 60:
                raise TimeoutError
            edits.get(number, lambda folder: None)(tmp_path)
            return look(paths)

        async def count() -> int:
            occasions = 0
            try:
                async for _ in changes([tmp_path / "c.yaml", tmp_path / "templates"]):
                    occasions += 1
            except TimeoutError:
                return occasions - 1  # the first comes without an edit
            raise AssertionError

        monkeypatch.setattr(trial, "_contents", polled)
        return asyncio.run(count())

    return after


def rewritten(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def away(folder: Path) -> None:
    (folder / "c.yaml").rename(folder / "c.yaml~")


def back(folder: Path) -> None:
    (folder / "c.yaml~").rename(folder / "c.yaml")


@pytest.mark.parametrize(
    "edit",
    [
        rewritten("c.yaml", "two"),
        rewritten("templates/judge.jinja", "two"),
        rewritten("templates/few_shot.yaml", ""),
        lambda folder: (folder / "templates/judge.jinja").unlink(),
        away,
    ],
)
def test_an_edit_is_noticed_once(noticed, edit: Edit) -> None:
    assert noticed({5: edit}) == 1


def test_saving_the_same_again_is_no_change(noticed) -> None:
    assert noticed({5: rewritten("c.yaml", "one")}) == 0
    assert noticed({}) == 0


def test_a_moment_without_the_file_is_no_change(noticed) -> None:
    assert noticed({5: away, 9: back}) == 0
    assert noticed({5: away, 30: back}) == 2


def test_a_file_that_is_still_being_written_is_waited_for(noticed) -> None:
    assert noticed({n: rewritten("c.yaml", "two" * n) for n in range(5, 15)}) == 1
    assert noticed({5: rewritten("c.yaml", "two"), 10: rewritten("c.yaml", "three")}) == 2


def test_what_is_under_way_is_left_off_when_it_is_to_be_done_again() -> None:
    log: list[str] = []

    async def main() -> None:
        started, numbers = asyncio.Event(), iter("abc")

        async def occasions() -> AsyncIterator[None]:
            yield
            for _ in range(2):
                await started.wait()
                started.clear()
                yield

        async def work() -> None:
            name = next(numbers)
            log.append(f"{name} begins")
            started.set()
            try:
                await asyncio.sleep(0 if name == "c" else 60)
            except asyncio.CancelledError:
                log.append(f"{name} left off")
                raise
            log.append(f"{name} done")

        await restarted(occasions(), work)

    asyncio.run(main())
    assert log == ["a begins", "a left off", "b begins", "b left off", "c begins", "c done"]


def test_an_error_of_the_work_ends_the_watching() -> None:
    async def occasions() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(60)

    async def work() -> None:
        raise CaiError("no model")

    with pytest.raises(CaiError, match="no model"):
        asyncio.run(restarted(occasions(), work))


def test_without_watching_it_is_done_once() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    asyncio.run(restarted(once(), work))
    assert done == [1]
