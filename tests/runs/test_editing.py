"""After an edit exactly those calls are made again whose rendered request is another one."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.config.hashing import canonical_json, fingerprint
from cai.constitution.principles import Constitution, Principle, load_constitution
from cai.constitution.templates import Templates
from cai.feedback.judge import Judge, JudgeConfig
from cai.feedback.revise import ReviseConfig, Reviser
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Choose, Generate, ScriptedEngine
from tests.conftest import ROOT, prompt

PROMPTS = [prompt(f"p{i}", f"Question number {i}?") for i in range(6)]
SHIPPED = load_constitution(ROOT / "constitutions/brief.yaml")
Requests = set[tuple[str, str, str]]  # step, and the request as the model sees it


async def run_to_end(c: Constitution, templates: Templates, store: Cache) -> Requests:
    """Loop and judge; what was asked of the model, whose answers depend on all of a request."""
    model = ScriptedEngine(answer=lambda request: fingerprint(request.messages, request.seed))
    engine = CachedEngine("scripted", store, lambda: model)
    for each in PROMPTS:
        reviser = Reviser(templates, engine, ReviseConfig(rounds=2, max_tokens=9), seed=0)
        drafts = [await reviser.respond(each, number) for number in range(2)]
        await reviser.rounds(each, drafts[0], c)
        answers = [draft.text for draft in drafts]
        await Judge(templates, engine, JudgeConfig(principles=2)).judge_answers(each, answers, c)
    return {rendered(request) for request in model.requests}


def rendered(request: Generate | Choose) -> tuple[str, str, str]:
    asked = {name: value for name, value in vars(request).items() if name != "step"}
    return request.step, type(request).__name__, canonical_json(asked)


def reword(field: str) -> Callable[[Constitution, int], Constitution]:
    def edit(c: Constitution, number: int) -> Constitution:
        principles = list(c.principles)
        old = principles[number]
        principles[number] = old.model_copy(update={field: getattr(old, field) + " Really?"})
        return c.model_copy(update={"principles": principles})

    return edit


def with_principles(change: Callable[[list[Principle], int], object]) -> Callable[[Constitution, int], Constitution]:
    def edit(c: Constitution, number: int) -> Constitution:
        principles = list(c.principles)
        change(principles, number)
        return c.model_copy(update={"principles": principles})

    return edit


EDITS: dict[str, Callable[[Constitution, int], Constitution]] = {
    "critique": reword("critique"),
    "revision": reword("revision"),
    "judge": reword("judge"),
    "notes": reword("notes"),
    "removed": with_principles(lambda principles, number: principles.pop(number)),
    "added": with_principles(lambda ps, n: ps.append(ps[n].model_copy(update={"id": "one-more"}))),
    "renamed": with_principles(lambda ps, n: ps.insert(n, ps.pop(n).model_copy(update={"id": "new-name"}))),
    "reweighted": with_principles(lambda ps, n: ps.insert(n, ps.pop(n).model_copy(update={"weight": 5.0}))),
    "reordered": with_principles(lambda ps, n: ps.append(ps.pop(n))),
}


@cache
def unedited() -> tuple[Requests, bytes]:
    """The requests of a run before an edit, and the file of its cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sqlite"
        with closing(Cache(path)) as remembering:
            before = asyncio.run(run_to_end(SHIPPED, Templates(ROOT / "prompts/default"), remembering))
        return before, path.read_bytes()


def after(edit: Constitution, templates: Templates) -> tuple[Requests, Requests, Requests]:
    """Requests of a run before an edit, of one made afresh after it, and those asked by one that remembers the first."""
    before, remembered = unedited()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.sqlite").write_bytes(remembered)
        first, second = (Cache(Path(folder) / f"{name}.sqlite") for name in "ab")
        fresh = asyncio.run(run_to_end(edit, templates, second))
        again = asyncio.run(run_to_end(edit, templates, first))
        first.close()
        second.close()
    return before, fresh, again


@pytest.mark.slow
@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 2)), min_size=1, max_size=3))
def test_any_edit_asks_again_exactly_what_it_changed(edits: list[tuple[str, int]]) -> None:
    edited = SHIPPED
    for kind, number in edits:
        edited = EDITS[kind](edited, number % len(edited.principles))
        if len({p.id for p in edited.principles}) < len(edited.principles) or len(edited.principles) < 2:
            return
    before, fresh, again = after(edited, Templates(ROOT / "prompts/default"))
    assert again == fresh - before


def test_a_verdicts_question_is_asked_again_for_its_principle_alone() -> None:
    before, fresh, again = after(EDITS["judge"](SHIPPED, 0), Templates(ROOT / "prompts/default"))
    assert again
    assert {step for step, _, _ in again} == {"verdict"}
    assert all("Really?" in text for _, _, text in again)
    assert all("Really?" not in text for _, _, text in fresh - again)
    assert len(before) == len(fresh)


@pytest.mark.slow
def test_a_template_is_asked_again_with_what_depends_on_it(tmp_path: Path) -> None:
    for name, steps in (
        ("judge", {"verdict"}),
        ("revise", {"critique", "revision"}),
        ("critique", {"critique", "revision"}),
    ):
        folder = tmp_path / name
        shutil.copytree(ROOT / "prompts/default", folder)
        path = folder / f"{name}.jinja"
        text = path.read_text(encoding="utf-8")
        edited = text.replace("Here is", "Look, here is") if name == "judge" else text + "\nThank you."
        path.write_text(edited, encoding="utf-8")
        before, fresh, again = after(SHIPPED, Templates(folder))
        assert again == fresh - before
        assert {step for step, _, _ in again} == steps


def test_what_no_model_sees_costs_nothing() -> None:
    for kind in ("notes", "reordered"):
        assert not after(EDITS[kind](SHIPPED, 1), Templates(ROOT / "prompts/default"))[2]
