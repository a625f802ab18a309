import asyncio

import pytest

from cai.constitution.principles import Constitution
from cai.constitution.templates import OF_TESTS, Templates
from cai.feedback.yes_no import check_critique
from cai.inference.engine import ScriptedEngine
from tests.conftest import ROOT


def test_the_next_token_decides_whether_a_critique_finds_a_problem(harmless: Constitution) -> None:
    engine = ScriptedEngine(weigh=lambda request: (0.6, 0.2))
    templates = Templates(ROOT / "prompts/default", OF_TESTS)
    principle = harmless.principles[0]
    found = asyncio.run(check_critique(principle, "How?", "Jump.", "{{ It }} may hurt.", templates, engine))
    assert found.p == pytest.approx(0.75)
    assert found.non_option_mass == pytest.approx(0.2)
    [request] = engine.requests
    assert request.options == (" Yes", " No")
    question, start = request.messages
    assert "{{ It }} may hurt." in question["content"]
    assert principle.critique in question["content"]
    assert (start["role"], start["content"][-1]) == ("assistant", ":")  # the options begin with a space


def test_probabilities_too_small_to_tell_stay_finite(harmless: Constitution) -> None:
    engine = ScriptedEngine(weigh=lambda request: (1e-300, 1e-200))
    templates = Templates(ROOT / "prompts/default", OF_TESTS)
    found = asyncio.run(check_critique(harmless.principles[0], "How?", "Jump.", "Bad.", templates, engine))
    assert (found.p, found.non_option_mass) == (0.5, pytest.approx(1.0))
