import asyncio
import dataclasses
import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference import cache_file
from cai.inference.cache import LEASE_SECONDS, Cache, Changes, Committed, OverlayCache, Tally
from cai.inference.cache_file import APPLICATION, Entry, file_system
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Choose, Completion, Engine, Generate, Sampling, ScriptedEngine, UnusableAnswer
from tests.faults.asking import request


def generate(seed: int = 0, text: str = "hello", max_tokens: int = 9) -> Generate:
    return Generate([Message(role="user", content=text)], max_tokens, 1.0, seed)


def choose(text: str = "hello") -> Choose:
    return Choose([Message(role="user", content=text), Message(role="assistant", content="Answer")], (" A", " B"))


def remembering(path: Path, model: Engine, fingerprint: str = "m") -> CachedEngine:
    return CachedEngine(fingerprint, Cache(path), lambda: model)


def test_an_answer_is_paid_for_once_across_processes_and_engines(tmp_path: Path) -> None:
    model = ScriptedEngine()

    async def ask() -> tuple[Completion, list[float], CachedEngine]:
        engine = remembering(tmp_path / "cache.sqlite", model)
        return await engine.generate(generate()), await engine.choose(choose()), engine

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first[:2] == second[:2]
    assert len(model.requests) == 2
    assert (second[2].tally.cache_misses, second[2].tally.cache_hits) == (0, 2)


DRAWN = dataclasses.replace(generate(), sampling=Sampling(top_p=0.9))


@pytest.mark.parametrize("other", [generate(seed=1), generate(text="hello "), generate(max_tokens=8), DRAWN])
def test_any_change_of_the_request_is_another_call(tmp_path: Path, other: Generate) -> None:
    model = ScriptedEngine()

    async def ask() -> None:
        engine = remembering(tmp_path / "cache.sqlite", model)
        await engine.generate(generate())
        await engine.generate(other)
        await remembering(tmp_path / "cache.sqlite", model, fingerprint="another model").generate(generate())

    asyncio.run(ask())
    assert len(model.requests) == 3


def test_equal_requests_at_the_same_time_are_asked_once(tmp_path: Path) -> None:
    model = ScriptedEngine(delay=0.01)

    async def ask() -> list[Completion]:
        engine = remembering(tmp_path / "cache.sqlite", model)
        return await asyncio.gather(*(engine.generate(generate()) for _ in range(5)))

    assert len(set(asyncio.run(ask()))) == 1
    assert len(model.requests) == 1


def test_the_model_is_not_opened_while_the_cache_has_every_answer(tmp_path: Path) -> None:
    async def ask(open_engine: Callable[[], Engine]) -> Completion:
        return await CachedEngine("m", Cache(tmp_path / "cache.sqlite"), open_engine).generate(generate())

    def never() -> Engine:
        raise AssertionError("opened")

    assert asyncio.run(ask(ScriptedEngine)) == asyncio.run(ask(never))


class CountingCache(Cache):
    """A cache that counts its transactions, each of which takes `seconds` more than it does."""

    transactions = 0
    seconds = 0.0

    def commit(self, changes: Changes) -> Committed:
        self.transactions += 1
        time.sleep(self.seconds)
        return super().commit(changes)


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 0.5), (0.01, 0.25)])
def test_calls_that_end_one_by_one_share_transactions_and_more_on_a_slow_disk(
    tmp_path: Path, seconds: float, most: float
) -> None:
    class Trickling(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            await asyncio.sleep(0.002 * request.seed)
            return await super().generate(request)

    cache = CountingCache(tmp_path / "cache.sqlite")
    cache.seconds = seconds
    engine = CachedEngine("m", cache, Trickling)

    async def ask() -> None:
        await asyncio.gather(*(engine.generate(generate(seed=i)) for i in range(100)))

    asyncio.run(ask())
    assert engine.tally.cache_misses == 100
    assert cache.transactions < most * 100


class LookingCache(Cache):
    """A cache that counts the look-ups of answers."""

    looked = 0

    def get(self, key: bytes) -> Any:
        self.looked += 1
        return super().get(key)


def test_a_call_after_a_miss_is_looked_up_only_if_it_has_an_answer(tmp_path: Path) -> None:
    asyncio.run(remembering(tmp_path / "cache.sqlite", ScriptedEngine()).generate(generate(seed=7)))
    cache, model = LookingCache(tmp_path / "cache.sqlite"), ScriptedEngine()
    engine = CachedEngine("m", cache, lambda: model)

    async def ask(*seeds: int) -> None:
        for seed in seeds:
            await engine.generate(generate(seed=seed))

    asyncio.run(ask(0, 1, 2))
    assert (cache.looked, engine.tally.cache_misses) == (1, 3)
    asyncio.run(ask(7, 0, 1))
    assert (cache.looked, engine.tally.cache_hits, len(model.requests)) == (4, 3, 3)


def test_an_overlay_finds_answers_below_after_misses_and_asks_again_for_an_unusable_one(tmp_path: Path) -> None:
    below, model = Cache(tmp_path / "below.sqlite"), ScriptedEngine()
    asyncio.run(CachedEngine("m", below, ScriptedEngine).generate(generate(seed=7)))
    engine = CachedEngine("m", OverlayCache(below, Cache(tmp_path / "upper.sqlite")), lambda: model)
    below.commit(Changes(entries=[Entry(engine._key(generate(seed=8)), "m", "Generate", "3", 0)]))

    async def ask() -> None:
        for seed in (0, 7, 0, 1, 8, 8):
            await asyncio.wait_for(engine.generate(generate(seed=seed)), 10)

    asyncio.run(ask())
    assert [asked.seed for asked in model.requests if isinstance(asked, Generate)] == [0, 1, 8]
    assert engine.tally.cache_hits == 3


def test_of_entries_stored_together_those_that_came_second_are_told(tmp_path: Path) -> None:
    def entry(key: bytes, answer: str) -> Entry:
        return Entry(key, "m", "Generate", answer, 0)

    with closing(Cache(tmp_path / "cache.sqlite")) as one, closing(Cache(tmp_path / "cache.sqlite")) as other:
        assert one.commit(Changes([entry(b"a", '"1"')], [b"b", b"c"])) == Committed({b"b", b"c"}, set())
        changes = Changes([entry(b"a", '"2"'), entry(b"d", '"3"')], [b"a", b"b", b"d", b"e"])
        assert other.commit(changes) == Committed({b"e"}, {b"a"})
        assert other.commit(Changes(leases=[b"e"])) == Committed({b"e"}, set())
        assert [other.get(key) for key in (b"a", b"d")] == ["1", "3"]


def test_an_interrupt_stores_the_answers_that_wait_for_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.inference.cached_engine.LEAST_DELAY", 60.0)
    engine = remembering(tmp_path / "cache.sqlite", ScriptedEngine())

    async def ask() -> None:
        with engine.stage("feedback"):
            waiting = asyncio.ensure_future(engine.generate(generate()))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.sleep(0)

    asyncio.run(ask())
    with closing(sqlite3.connect(tmp_path / "cache.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (1,)


def test_a_refusal_reaches_everyone_who_waits_and_is_not_cached(tmp_path: Path) -> None:
    class Refusing(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            await asyncio.sleep(0.01)
            self.requests.append(request)
            raise RequestRefused("too long")

    model = Refusing()

    async def ask() -> list[object]:
        engine = remembering(tmp_path / "cache.sqlite", model)
        both = await asyncio.gather(*(engine.generate(generate()) for _ in range(2)), return_exceptions=True)
        again = await asyncio.gather(engine.generate(generate()), return_exceptions=True)
        return [*both, *again]

    assert [str(error) for error in asyncio.run(ask())] == ["too long"] * 3
    assert len(model.requests) == 2


def test_a_file_that_is_no_cache_is_set_aside_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("not a database at all, just text " * 10)
    with closing(Cache(path)) as cache:
        cache.put(b"key", {"text": "new"})
        assert cache.get(b"key") == {"text": "new"}
    assert f"{path}: was damaged; its 0 intact entries" in capsys.readouterr().err
    assert (tmp_path / "cache.sqlite.corrupt-1").read_text().startswith("not a database")


def test_a_path_with_control_characters_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a\x1b[2Jb" / "cache.sqlite"
    path.parent.mkdir()
    path.write_text("not a database at all, just text " * 10)
    Cache(path).close()
    printed = capsys.readouterr().err
    assert "a\\x1b[2Jb/cache.sqlite: was damaged" in printed and "\x1b" not in printed


def asking(path: Path, questions: int, delay: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.faults.asking", str(path), str(questions), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> Any:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output)


@pytest.mark.slow
def test_two_processes_pay_for_each_call_once_and_have_the_same_answers(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    processes = [asking(path, 64, delay=0.5) for _ in range(2)]
    first, second = map(result, processes)
    assert first["paid"] + second["paid"] == 64
    assert first["answers"] == second["answers"]
    again = result(asking(path, 64, delay=0))
    assert again == {"paid": 0, "answers": first["answers"]}


@pytest.mark.slow
def test_when_the_process_that_asks_is_killed_another_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "cache.sqlite", ScriptedEngine()
    killed = asking(path, 1, delay=600)
    deadline = time.monotonic() + 60
    with closing(Cache(path)) as cache:
        while not leases(path) and time.monotonic() < deadline:
            time.sleep(0.05)
        killed.kill()
        killed.wait()
        monkeypatch.setattr("cai.inference.cache.LEASE_SECONDS", 1.0)
        begun = time.monotonic()
        asyncio.run(CachedEngine("m", cache, lambda: model).generate(request(0)))
    assert 0.2 < time.monotonic() - begun < 5
    assert len(model.requests) == 1


def leases(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM leases").fetchone()[0])


@pytest.mark.slow
def test_a_long_call_keeps_its_lease_by_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.inference.cache.LEASE_SECONDS", 0.3)
    monkeypatch.setattr("cai.inference.cached_engine.BEAT_SECONDS", 0.05)
    model, other = ScriptedEngine(delay=1.0), ScriptedEngine()

    async def ask() -> tuple[Completion, Completion]:
        one, two = (remembering(tmp_path / "cache.sqlite", engine) for engine in (model, other))
        first = asyncio.ensure_future(one.generate(generate()))
        await asyncio.sleep(0.1)
        return await two.generate(generate()), await first

    waited, paid = asyncio.run(ask())
    assert waited == paid
    assert other.requests == []


def test_the_first_answer_counts_where_two_were_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.inference.cache.LEASE_SECONDS", -1.0)  # every lease is over at once
    slow, quick = ScriptedEngine(answer=lambda _: "slow", delay=0.3), ScriptedEngine(answer=lambda _: "quick")

    async def ask() -> tuple[Completion, Completion]:
        one, two = (remembering(tmp_path / "cache.sqlite", engine) for engine in (slow, quick))
        return await asyncio.gather(one.generate(generate()), two.generate(generate()))

    first, second = asyncio.run(ask())
    assert (first.text, second.text) == ("quick", "quick")
    assert asyncio.run(remembering(tmp_path / "cache.sqlite", slow).generate(generate())).text == "quick"


def test_a_lease_ends_with_a_refusal_a_cancellation_or_the_end_of_its_process(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"

    class Refusing(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            raise RequestRefused("too long")

    async def ask() -> None:
        with pytest.raises(RequestRefused):
            await remembering(path, Refusing()).generate(generate())
        cancelled = asyncio.ensure_future(remembering(path, ScriptedEngine(delay=60)).generate(generate(seed=1)))
        await asyncio.sleep(0.1)
        assert leases(path) == 1
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert leases(path) == 0
    with closing(Cache(path)) as cache:
        assert cache.commit(Changes(leases=[b"key"])).leased == {b"key"}
    assert leases(path) == 0


@pytest.mark.parametrize("log_probs", [[math.nan, -1.0], [-1.0], [-1.0, math.inf]])
def test_an_unusable_answer_is_refused_and_never_stored(tmp_path: Path, log_probs: list[float]) -> None:
    class Broken(ScriptedEngine):
        async def choose(self, request: Choose) -> list[float]:
            return log_probs

    with pytest.raises(UnusableAnswer):
        asyncio.run(remembering(tmp_path / "cache.sqlite", Broken()).choose(choose()))
    again = remembering(tmp_path / "cache.sqlite", ScriptedEngine()).choose(choose())
    usable = asyncio.run(asyncio.wait_for(again, LEASE_SECONDS / 2))  # the lease ended with the refusal
    assert usable == [math.log(0.5)] * 2


@pytest.mark.parametrize("stored", ["[NaN, -1.0]", "[-1.0]", '{"text": "x"}', '"text"', "3"])
def test_an_unusable_answer_of_an_earlier_version_is_asked_for_again(tmp_path: Path, stored: str) -> None:
    engine = remembering(tmp_path / "cache.sqlite", ScriptedEngine())
    for each in (choose(), generate()):
        entry = Entry(engine._key(each), "m", "Choose", stored, 0)
        engine._cache.commit(Changes(entries=[entry]))
    assert asyncio.run(engine.choose(choose())) == [math.log(0.5)] * 2
    assert asyncio.run(engine.generate(generate())).finish == "stop"
    assert engine.tally.cache_misses == 2
    again = remembering(tmp_path / "cache.sqlite", ScriptedEngine())
    asyncio.run(again.choose(choose()))
    assert again.tally.cache_hits == 1


def test_a_damaged_entry_is_a_miss_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / "cache.sqlite", ScriptedEngine()
    first = asyncio.run(remembering(path, model).generate(generate()))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE answers SET answer = replace(answer, 'Answer', 'Forged')")
        db.commit()
    assert asyncio.run(remembering(path, model).generate(generate())) == first
    assert len(model.requests) == 2
    assert "has a damaged entry, which is asked for again" in capsys.readouterr().err


def old_cache(path: Path, answers: dict[bytes, str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE calls (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        db.execute("CREATE TABLE work (engine TEXT, work TEXT)")
        db.executemany("INSERT INTO calls VALUES (?, ?)", answers.items())
        work = {"stage": "s", "steps": {"thought": {"asked": 1}}, "seconds": 1.0, "loaded": True}
        db.execute("INSERT INTO work VALUES ('m', ?)", (json.dumps(work),))


def test_a_cache_of_format_1_is_converted_in_place_and_no_answer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cai.inference.cache_file.ROWS_AT_ONCE", 7)
    answers = {hashlib.md5(bytes([n])).digest(): json.dumps({"text": "x" * n * 100}) for n in range(50)}
    monkeypatch.setattr("cai.inference.cache_file.MANY", 40)
    old_cache(tmp_path / "cache.sqlite", answers)
    for _ in range(2):
        with closing(Cache(tmp_path / "cache.sqlite")) as cache:
            assert {key: json.dumps(cache.get(key)) for key in answers} == answers
            assert [work.steps for work in cache.work("m")] == [{"chain_of_thought": Tally(cache_misses=1)}]
    assert capsys.readouterr().err.count("converting 50 entries") == 1


def test_a_cache_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        cache._db.execute("PRAGMA user_version=3")
        cache._db.execute(f"PRAGMA application_id={APPLICATION + 3}")
    with pytest.raises(CaiError, match=r"cache\.sqlite: a cache of format 3; cai .* reads up to 2: update cai"):
        Cache(tmp_path / "cache.sqlite")
    assert [path.name for path in tmp_path.glob("*corrupt*")] == []


def test_a_cache_that_cannot_be_written_any_more_can_be_closed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache.sqlite")
    cache.commit(Changes(leases=[b"key"]))
    cache._db.execute("PRAGMA query_only=1")
    with pytest.raises(CaiError, match=r"cache\.sqlite: the cache cannot be used: .*readonly"):
        cache.put(b"key", {})
    cache.close()


MOUNTS = "36 35 {} / /data rw,noatime shared:1 - {} server:/export rw,vers=4.2\n25 24 0:999 / / rw - ext4 /dev/vda rw\n"


def test_on_a_network_file_system_a_cache_has_a_rollback_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_file, "file_system", lambda folder: "nfs4")
    path = tmp_path / "cache.sqlite"
    with closing(Cache(path)) as one, closing(Cache(path)) as two:
        one.put(b"1" * 16, "first")
        assert two.get(b"1" * 16) == "first"
        two.put(b"2" * 16, "second")
        assert one.get(b"2" * 16) == "second"
        assert not path.with_name("cache.sqlite-wal").exists()
    assert capsys.readouterr().err.count("is on a network file system (nfs4): let one process at a time use it") == 1
    monkeypatch.undo()
    with closing(Cache(path)) as local:
        assert local.get(b"2" * 16) == "second"
        assert path.with_name("cache.sqlite-wal").exists()


def test_the_file_system_is_that_of_the_folders_device(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(f"{os.major(device)}:{os.minor(device)}", "lustre"))
    assert file_system(tmp_path, mounts) == "lustre"
    mounts.write_text(MOUNTS.format("0:998", "lustre"))
    assert file_system(tmp_path, mounts) == file_system(tmp_path, tmp_path / "none") == ""


def test_the_journal_of_a_damaged_file_is_set_aside_with_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with closing(Cache(path)) as cache:
        cache.put(b"1" * 16, "first")
    path.write_bytes(path.read_bytes().replace(b"SQLite format 3", b"SQLite format 9"))
    path.with_name("cache.sqlite-journal").write_bytes(b"the start of a transaction")
    with closing(Cache(path)) as cache:
        assert cache.get(b"1" * 16) == "first"
    assert path.with_name("cache.sqlite.corrupt-1-journal").exists()
    assert not path.with_name("cache.sqlite-journal").exists()
