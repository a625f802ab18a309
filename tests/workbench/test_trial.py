import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.constitution.principles import load_constitution
from cai.constitution.templates import OF_RUNS, Templates
from cai.feedback.revise import ReviseConfig
from cai.inference.engine import Generate, ScriptedEngine
from cai.inference.models import Server
from cai.workbench.trial import Begun, Done, Event, Loading, News, Trial, Written, once, try_out
from tests.conftest import ROOT, prompt, scripted


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0)


class Tried:
    """A constitution of two principles in a file, tried with prompts, and again after each edit of the file."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.file = folder / "c.yaml"
        self.engines: list[ScriptedEngine] = []
        self.settings = ReviseConfig(rounds=1, temperature=0)
        self.prompts = [prompt("p1", "One?"), prompt("p2", "Two?")]
        self.answer: Callable[[Generate], str] | None = None
        self.templates = Templates(ROOT / "prompts/default")
        texts = "critique: Find {0}., revision: Mend {0}., judge: Which lacks {0}"
        principles = "".join(f"  - {{id: {i}, {texts.format(i)}}}\n" for i in ("a", "b"))
        self.file.write_text(f"name: c\nprinciples:\n{principles}", encoding="utf-8")

    def __call__(self, *edits: tuple[str, str]) -> list[Event]:
        """All events of a first pass and of one after each edit, every pass being waited for."""
        events: list[Event] = []

        async def occasions() -> AsyncIterator[None]:
            yield
            for number, (old, new) in enumerate(edits, start=1):
                await until(lambda n=number: sum(isinstance(e, Done | CaiError) for e in events) >= n)
                text = self.file.read_text(encoding="utf-8")
                assert old in text
                self.file.write_text(text.replace(old, new), encoding="utf-8")
                yield

        def load() -> Trial:
            principles = load_constitution(self.file).principles
            return Trial(self.prompts, principles, self.templates, self.settings)

        cache = self.folder / "cache.sqlite"
        try_out(load, occasions(), self.model, cache, events.append, scripted(self.engines, self.answer))
        return events


@pytest.fixture
def tried(tmp_path: Path, model_folder: Path) -> Tried:
    return Tried(tmp_path, model_folder)


def result(events: list[Event]) -> list[tuple[str, str, int, str]]:
    return [event.step.key for event in events if isinstance(event, News)]


def test_a_transcript_says_whether_a_principle_applies_and_writes_its_texts_in_either_case(tried: Tried) -> None:
    text = tried.file.read_text(encoding="utf-8")
    text = text.replace("lacks a}", 'lacks a, applies_to: {question: "Is it short?"}}')
    tried.file.write_text(text.replace("lacks b}", "lacks b, applies_to: {tags: [x]}}"), encoding="utf-8")
    tried.templates = Templates(ROOT / "prompts/default", (*OF_RUNS, "applies"))
    events = tried()
    assert [text for p, *_, text in result(events) if p == "p1"] == ["draft", *["applies", "critique", "revision"] * 2]
    said = [
        event.written.completion.text for event in events if isinstance(event, News) and event.step.text == "applies"
    ]
    assert said[:2] == ["yes; P(Yes) = 0.500 to “Is it short?”", "no; the prompt's tags: test; tags x"]


def test_a_transcript_is_a_draft_and_then_each_principles_critique_and_revision(tried: Tried) -> None:
    events = tried()
    assert result(events) == [
        key
        for p in ("p1", "p2")
        for key in [(p, "", 0, "draft")]
        + [(p, principle, 1, text) for principle in ("a", "b") for text in ("critique", "revision")]
    ]
    assert events[0] == Begun(again=False)
    assert isinstance(events[-1], Done)
    assert events[-1][:2] == (10, 10)
    [engine] = tried.engines
    assert len(engine.requests) == 10  # the draft is asked once, whatever follows from it
    assert {request.temperature for request in engine.requests} == {0}


def test_a_critique_is_of_the_draft_and_a_revision_follows_it(tried: Tried) -> None:
    draft, critique, revision = [event.written for event in tried() if isinstance(event, News)][:3]
    assert all(isinstance(text, Written) for text in (draft, critique, revision))
    assert (draft.about, critique.about, revision.about) == ("", draft.completion.text, draft.completion.text)
    [asked, *_] = [r.messages for r in tried.engines[0].requests if "Mend a." in r.messages[-1]["content"]]
    assert [turn["content"] for turn in asked if turn["role"] == "assistant"] == [
        draft.completion.text,
        critique.completion.text,
    ]


def test_further_rounds_start_from_the_last_revision_and_critiques_may_be_skipped(tried: Tried) -> None:
    tried.prompts, tried.settings = tried.prompts[:1], ReviseConfig(rounds=3, critique=False, temperature=0)
    news = [event for event in tried() if isinstance(event, News) and event.step.principle]
    assert [event.step.key[1:] for event in news] == [(p, r, "revision") for p in "ab" for r in (1, 2, 3)]
    assert [e.written.about for e in news[1:3]] == [e.written.completion.text for e in news[:2]]
    assert len(tried.engines[0].requests) == 7


def test_after_an_edit_only_changed_texts_are_generated_and_printed(tried: Tried) -> None:
    def answer(request: Generate) -> str:
        asked = request.messages[-1]["content"].split("\n")[0]
        return f"said to {asked}" if "Find" not in asked else "a critique"

    tried.answer = answer
    events = tried(("Mend b.", "Better b."), ("Find a.", "Seek a."), ("name: c", "name: d"))
    starts = [index for index, event in enumerate(events) if isinstance(event, Begun)]
    first, second, third, fourth = (events[i:j] for i, j in itertools.pairwise([*starts, len(events)]))
    assert first[0] == Begun(again=False)
    assert len(result(first)) == 10
    assert result(second) == [("p1", "b", 1, "revision"), ("p2", "b", 1, "revision")]
    assert second[0] == Begun(again=True)
    news = second[1]
    assert isinstance(news, News)
    assert (news.before, news.written.completion.text) == ("said to Mend b.", "said to Better b.")
    assert second[-1][:2] == (2, 2)
    assert result(third) == [("p1", "a", 1, "critique"), ("p2", "a", 1, "critique")]  # the revisions came out the same
    assert third[-1][:2] == (2, 4)
    assert fourth[1][:2] == (0, 0)
    assert len(tried.engines) == 1  # the model stayed loaded


def test_a_file_that_does_not_load_is_reported_and_waited_for(tried: Tried) -> None:
    events = tried(("name: c", "nam: c"), ("nam: c", "name: c"))
    [error] = [event for event in events if isinstance(event, CaiError)]
    assert "c.yaml:1: nam: unknown key 'nam'; did you mean 'name'?" in str(error)
    assert isinstance(events[-1], Done)
    assert events[-1].news == 0


def test_a_new_principle_has_all_its_texts_printed(tried: Tried) -> None:
    events = tried(("id: b", "id: new"))
    later = events[[isinstance(event, Done) for event in events].index(True) + 1 :]
    assert [key[1] for key in result(later)] == ["new"] * 4
    assert all(event.before is None for event in later if isinstance(event, News))


def test_a_refused_request_is_reported_once_in_its_place(tried: Tried) -> None:
    def answer(request: Generate) -> str:
        if "Find a." in request.messages[-1]["content"]:
            raise RequestRefused("too long")
        return "said"

    tried.answer, tried.prompts = answer, tried.prompts[:1]
    events = tried()
    refused = [event.step.key for event in events if isinstance(event, News) and isinstance(event.written, Exception)]
    assert refused == [("p1", "a", 1, "critique")]
    assert result(events)[-2:] == [("p1", "b", 1, "critique"), ("p1", "b", 1, "revision")]


def test_what_the_cache_holds_needs_no_model(tried: Tried) -> None:
    tried()
    assert tried()[-1][:2] == (10, 0)
    assert len(tried.engines) == 1


@pytest.mark.parametrize("served", [True, False])
def test_loading_a_model_is_reported_and_connecting_to_a_server_is_not(
    tmp_path: Path, tried: Tried, served: bool
) -> None:
    events: list[Event] = []
    model = Server.at("http://localhost/v1", "m") if served else tried.model
    trial = Trial(
        tried.prompts, load_constitution(tried.file).principles, Templates(ROOT / "prompts/default"), tried.settings
    )
    try_out(lambda: trial, once(), model, tmp_path / "cache.sqlite", events.append, scripted())
    assert len(result(events)) == 10
    assert [type(event) for event in events if isinstance(event, Begun | Loading)] == [Begun] + [Loading] * (not served)


def test_an_edit_while_texts_are_written_breaks_them_off(tmp_path: Path, tried: Tried) -> None:
    """The second occasion comes while the model is at the first draft."""
    events: list[Event] = []

    async def occasions() -> AsyncIterator[None]:
        yield
        await until(lambda: bool(tried.engines and tried.engines[0].requests))
        yield

    def load() -> Trial:
        principles = load_constitution(tried.file).principles
        return Trial(tried.prompts, principles, Templates(ROOT / "prompts/default"), tried.settings)

    engine = scripted(tried.engines, delay=0.01)
    try_out(load, occasions(), tried.model, tmp_path / "cache.sqlite", events.append, engine)
    assert [type(event) for event in events[:3]] == [Begun, Loading, Begun]
    assert len(result(events)) == 10
    assert sum(isinstance(event, Done) for event in events) == 1
