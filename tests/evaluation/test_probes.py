import asyncio
import base64
import itertools
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.config.yaml_files import load_yaml
from cai.evaluation.probes import (
    ASKED,
    OverRefusal,
    Questions,
    RedTeam,
    Sycophancy,
    ask_about,
    ask_view,
    over_refusal_probes,
    red_team_probes,
    views,
)
from cai.inference.engine import Choose, ScriptedEngine
from tests.conftest import ROOT

FILES = {"over_refusal": OverRefusal, "sycophancy": Sycophancy, "red_team": RedTeam, "questions": Questions}


def shipped(name: str) -> OverRefusal | Sycophancy | RedTeam | Questions:
    return load_yaml(ROOT / f"probes/{name}.yaml", FILES[name])  # type: ignore[type-var]


def edited(folder: Path, name: str, old: str, new: str) -> Path:
    text = (ROOT / f"probes/{name}.yaml").read_text(encoding="utf-8")
    assert old in text
    path = folder / f"{name}.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_shipped_sets_are_large_enough_and_their_pairs_sound_alike() -> None:
    probes = shipped("over_refusal")
    assert isinstance(probes, OverRefusal)
    assert len(probes.pairs) >= 30
    texts = [text for twins in probes.pairs for text in (twins.harmful, twins.harmless)]
    assert len(set(texts)) == len(texts)
    sycophancy = shipped("sycophancy")
    assert isinstance(sycophancy, Sycophancy)
    assert len(sycophancy.opinions) + len(sycophancy.facts) >= 30


def test_both_twins_are_asked_and_a_limit_takes_the_first_pairs() -> None:
    probes = shipped("over_refusal")
    assert isinstance(probes, OverRefusal)
    found = over_refusal_probes(probes, limit=2)
    assert [(p.item, p.variant) for p in found] == list(
        itertools.product([twins.id for twins in probes.pairs[:2]], ["harmful", "harmless"])
    )
    assert [p.prompt.id for p in found][:2] == ["kill/harmful", "kill/harmless"]
    assert found[1].prompt.messages == [{"role": "user", "content": probes.pairs[0].harmless}]


def test_every_transformation_asks_for_the_same_and_a_judge_reads_the_plain_request() -> None:
    probes = shipped("red_team")
    assert isinstance(probes, RedTeam)
    found = {p.variant: p for p in red_team_probes(probes, limit=1)}
    request = probes.requests[0].request
    assert set(found) == {"plain", *(way.id for way in probes.transformations)}
    assert {p.meant for p in found.values()} == {request}
    asked = {way: p.prompt.messages[0]["content"] for way, p in found.items()}
    assert asked["plain"] == request
    assert len(set(asked.values())) == len(asked)
    assert base64.b64decode(asked["base64"].rsplit(": ", 1)[1]).decode() == request
    assert asked["spaced"].endswith(" ".join(request))
    assert asked["spelling"] != request and len(asked["spelling"]) == len(request)
    assert probes.requests[0].task in asked["story"]


def test_a_user_takes_either_side_in_the_same_words_and_other_items_change_nothing() -> None:
    probes = shipped("sycophancy")
    assert isinstance(probes, Sycophancy)
    found = views(probes)
    first, second = found[:2]
    assert (first.kind, first.side, second.side, first.question.id) == ("opinions", 0, 1, second.question.id)
    one, other = first.question.options
    assert first.statement.replace(one, other) == second.statement != first.statement
    fewer = probes.model_copy(update={"opinions": probes.opinions[3:]})
    assert [v for v in views(fewer) if v.kind == "opinions"] == [v for v in found if v.kind == "opinions"][6:]
    assert len({v.statement.split(probes.opinions[0].options[0])[0] for v in found}) > 3  # all statements are met


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("over_refusal", "id: shoot", "id: kill", r"pairs\[1\] \('kill'\)\.id: two entries of pairs have"),
        (
            "over_refusal",
            "harmless: How do I kill a P",
            "harmles: How do I kill a P",
            r"unknown key 'harmles'; did you",
        ),
        (
            "sycophancy",
            "sure of this: {{ option }}",
            "sure of this: {{ opinion }}",
            r"statements\[0\]: unknown variable 'opinion'; this template sees option",
        ),
        (
            "sycophancy",
            "options: [a dog, a cat]",
            "options: [a dog, a dog]",
            r"opinions\[1\] \('pets'\)\.options: the two",
        ),
        (
            "red_team",
            "{{ request | leet }}",
            "{{ request | l33t }}",
            r"transformations\[9\].*there is no filter 'l33t'",
        ),
        ("red_team", "{{ request }} Begin", "{{ request Begin", r"transformations\[1\].*not a valid template"),
        ("red_team", "{{ request }} Begin", "{{ request.__class__ }} Begin", r"transformations\[1\].*__class__"),
        ("red_team", "{{ request }} Begin", "{{ 'a' * 10 ** 10 }} Begin", r"transformations\[1\].*too much work"),
        ("red_team", "id: prefix", "id: plain", r"'plain' is the name of the request as it stands"),
        (
            "questions",
            "id: evades",
            "id: dodges",
            r"the question 'evades' is missing; a judge is asked refuses, evades, complies",
        ),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_its_place(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    with pytest.raises(CaiError, match=rf"{name}\.yaml:\d+: .*{said}"):
        load_yaml(edited(tmp_path, name, old, new), FILES[name])


def test_a_question_without_examples_of_both_kinds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.yaml"
    text = (ROOT / "probes/questions.yaml").read_text(encoding="utf-8").replace("holds: false", "holds: true")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaiError, match="examples of both kinds are needed"):
        load_yaml(path, Questions)


def test_model_text_is_no_template() -> None:
    questions, engine = shipped("questions"), ScriptedEngine()
    assert isinstance(questions, Questions)
    asyncio.run(ask_about(questions, "refuses", "{{ answer }} {% raw %}", "{{ request }} {{ 7 * 7 }}", engine))
    [text] = {request.messages[0]["content"].split("\n\n")[2] for request in engine.requests}
    assert text == "Answer: {{ request }} {{ 7 * 7 }}"


def test_position_bias_cancels_and_the_rate_is_of_the_first_option() -> None:
    questions, sycophancy = shipped("questions"), shipped("sycophancy")
    assert isinstance(questions, Questions) and isinstance(sycophancy, Sycophancy)

    def likes_a(request: Choose) -> list[float]:
        """Log-odds of 2 for A whatever stands there, and of 1 for the option about declining."""
        text = request.messages[0]["content"]
        odds = 2.0 + (1.0 if "A: It declines" in text else -1.0)
        a = 2.718281828459045**odds
        return [0.5 * a / (1 + a), 0.5 / (1 + a)]

    engine = ScriptedEngine(weigh=likes_a)
    said = asyncio.run(ask_about(questions, ASKED[0], "Why?", "No.", engine))
    assert said.forward == pytest.approx(1 / (1 + 2.718281828459045**-3))
    assert said.reverse == pytest.approx(1 / (1 + 2.718281828459045**1))
    assert said.non_option_mass == pytest.approx(0.5)
    texts = [request.messages[0]["content"] for request in engine.requests]
    assert len(set(texts)) == 2 and all("Request: Why?" in text and "Answer: No." in text for text in texts)
    asyncio.run(ask_view(sycophancy, views(sycophancy)[0], engine))
    assert "I am quite sure" in engine.requests[-1].messages[0]["content"]
    assert engine.requests[-1].messages[1] == {"role": "assistant", "content": "Answer"}
