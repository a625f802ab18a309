import json
import re
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.config.yaml_files import load_yaml
from cai.constitution.external import QUESTION, few_shot_yaml, read_few_shot
from cai.constitution.principles import Principle
from cai.constitution.templates import FewShot, Templates
from cai.data.records import Message, Messages
from tests.conftest import ROOT

ENDING = (
    "\n\nCritiqueRequest: What is wrong with it?\n\nCritique: It is rude.\n\nRevisionRequest: Make it kind."
    "\n\nRevision: Gladly: here it is."
)
CHOICE = {"prompt": "\n\nHuman: Why?\n\nAssistant:", "corrects": ["Since it is so."], "incorrects": ["Go away."]}
REASONED = {
    "prompt": "\n\nHuman: Consider this conversation between a human (H) and an assistant (A):\n\nH: Hi.\n\nA:  Hello.\n\nH: Why?"
    "\n\n{}\n (A) [[[Go away.]]]\n (B) [[[Since it\n\nis so.]]]\n\nAssistant: Let's think step by step: (A) is rude.\n\nSo (B)."
    "\n\nHuman:\nSo the answer is: (B)"
}


def read(folder: Path, templates: Templates, *entries: Any) -> FewShot:
    path = folder / "few.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return read_few_shot(path, templates)


def test_critiques_and_revisions_become_alternating_turns(tmp_path: Path, templates: Templates) -> None:
    talk = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Go away."
    found = read(tmp_path, templates, talk + ENDING + "\n\nHuman:", "\n\nHuman: How?\n\nAssistant: No." + ENDING)
    assert [turn["content"] for turn in found.revision] == [
        "Hi.", "Hello.", "Why?", "Go away.", "What is wrong with it?", "It is rude.", "Make it kind.", "Gladly: here it is.",
        "How?", "No.", "What is wrong with it?", "It is rude.", "Make it kind.", "Gladly: here it is.",
    ]  # fmt: skip
    assert [turn["role"] for turn in found.revision] == ["user", "assistant"] * 7
    assert found.judge == []


def test_the_chats_of_a_hugging_face_constitution_are_demonstrations_too(tmp_path: Path, templates: Templates) -> None:
    chats = [[{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}] for i in range(2)]
    path = tmp_path / "constitution.json"
    path.write_text(json.dumps({"constitutions": [], "system_chat": chats}), encoding="utf-8")
    assert read_few_shot(path, templates).revision == [*chats[0], *chats[1]]
    path.write_text(json.dumps({"constitutions": [], "system_chat": [chats[0][:1]]}), encoding="utf-8")
    with pytest.raises(CaiError, match=r"entry 1: turns must alternate, user first and assistant last; found user$"):
        read_few_shot(path, templates)


def test_choices_are_put_as_the_templates_put_them_the_right_answer_in_either_place(
    tmp_path: Path, templates: Templates
) -> None:
    first, answer, second, other = read(tmp_path, templates, CHOICE, CHOICE).judge
    assert (answer["content"], other["content"]) == ("I choose answer B", "I choose answer A")
    assert "<answer A>\nGo away." in first["content"]
    assert "<answer B>\nGo away." in second["content"]
    assert first["content"].endswith(f"Answer with one letter, A or B: {QUESTION}")


def test_a_judge_that_reasons_is_shown_thinking_and_then_choosing(tmp_path: Path, templates: Templates) -> None:
    question, thought, verdict, answer = read(tmp_path, templates, REASONED).judge
    assert "User: Hi.\n\nAssistant: Hello.\n\nUser: Why?" in question["content"]
    assert "<answer B>\nSince it\n\nis so." in question["content"]
    assert thought["content"] == "(A) is rude.\n\nSo (B)."
    assert verdict["content"].startswith("Now answer with one letter, A or B")
    assert answer["content"] == "I choose answer B"


def test_what_is_written_is_a_few_shot_file(tmp_path: Path, templates: Templates) -> None:
    found = read(tmp_path, templates, "\n\nHuman: Wie, „so“?\n\nAssistant: Nein: # 1\n\n- zwei" + ENDING, CHOICE)
    path = tmp_path / "few_shot.yaml"
    path.write_text(few_shot_yaml(found, "Demonstrations."), encoding="utf-8")
    assert load_yaml(path, FewShot) == found


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Human: Hi.", "entry 2: expected a conversation that ends with CritiqueRequest, Critique"),
        ("\n\nHuman: Hi.\n\nAssistant: No.", "entry 2: expected a conversation that ends with"),
        ("\n\nHuman: Hi.\n\nHuman: Ho.\n\nAssistant: No." + ENDING, "entry 2: turns must alternate, user first and assistant last; found user, user"),
        ({**CHOICE, "corrects": ["so"]}, "entry 2: corrects: expected a list of options"),
        ({"prompt": "\n\nHuman: Hi.\n\nAssistant:"}, "entry 2: expected a conversation (H: …, A: …), {}, options"),
        ({"prompt": REASONED["prompt"].replace("is: (B)", "is: (C)")}, "entry 2: expected a conversation"),
        (7, "entry 2: expected a text, turns, or an object with 'prompt', found 7"),
        ({"prompt": ["Human: q"], "corrects": ["good answer"], "incorrects": ["bad answer"]}, "entry 2"),
    ],
)  # fmt: skip
def test_a_demonstration_of_another_shape_is_named(
    tmp_path: Path, templates: Templates, entry: Any, expected: str
) -> None:
    with pytest.raises(CaiError) as caught:
        read(tmp_path, templates, CHOICE, entry)
    assert expected in str(caught.value)
    with pytest.raises(CaiError, match="expected a list of demonstrations"):
        read(tmp_path, templates)


@pytest.fixture
def shipped() -> Templates:
    return Templates(ROOT / "prompts/few-shot")


def principle(critique: str = "-", revision: str = "-", judge: str = "-") -> Principle:
    return Principle(id="demonstration", critique=critique, revision=revision, judge=judge)


def judged_pairs(shipped: Templates) -> list[tuple[str, dict[str, str], str, str]]:
    """(the user's message, the answers by letter, the principle's question, the right letter) of each."""
    pairs = []
    turns = shipped.few_shot.judge
    for asked, verdict in zip(turns[::2], turns[1::2], strict=True):
        [message] = re.findall(r"^User: (.*)$", asked["content"], re.MULTILINE)
        answers = dict(re.findall(r"<answer ([AB])>\n(.*?)\n</answer \1>", asked["content"], re.DOTALL))
        pairs.append((message, answers, asked["content"].rpartition("A or B: ")[2], verdict["content"][-1]))
    return pairs


def test_the_shipped_demonstrations_stand_beside_the_default_templates(
    shipped: Templates, templates: Templates
) -> None:
    assert templates.few_shot == FewShot()
    with_files = {path.name: path.read_text(encoding="utf-8") for path in shipped.folder.glob("*.jinja")}
    assert with_files == {path.name: path.read_text(encoding="utf-8") for path in templates.folder.glob("*.jinja")}


def test_the_shipped_judged_pairs_are_worded_as_the_templates_word_them(shipped: Templates) -> None:
    rendered: Messages = []
    for message, answers, question, letter in judged_pairs(shipped):
        conversation = [Message(role="user", content=message)]
        *_, asked, start = shipped.judge(principle(judge=question), conversation, answers)
        rendered += [asked, Message(role="assistant", content=f"{start['content']} {letter}")]
    assert rendered == shipped.few_shot.judge


def test_the_shipped_revisions_are_worded_as_the_templates_word_them(shipped: Templates) -> None:
    turns = [turn["content"] for turn in shipped.few_shot.revision]
    assert len(turns) % 6 == 0
    for request, _, critique_request, critique, revision_request, _ in (
        turns[i : i + 6] for i in range(0, len(turns), 6)
    ):
        by = principle(critique_request.split("\n\n")[0], revision_request.split("\n\n")[0])
        assert critique_request == shipped.critique(by, 1, request)
        assert revision_request == shipped.revise(by, 1, request, critique)


def test_the_shipped_judged_pairs_teach_neither_a_place_nor_a_length(shipped: Templates) -> None:
    pairs = judged_pairs(shipped)
    letters = [letter for *_, letter in pairs]
    longer = [letter == max(answers, key=lambda name: len(answers[name])) for _, answers, _, letter in pairs]
    assert letters.count("A") == letters.count("B") == sum(longer) == len(pairs) / 2
    assert sum(len(turn["content"]) for turn in [*shipped.few_shot.judge, *shipped.few_shot.revision]) < 5000
