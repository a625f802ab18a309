"""Prompt templates: a folder of Jinja files a person edits, rendered by `cai/constitution/sandbox.py`.

    critique.jinja   the user turn that asks for a critique of the last answer; sees principle, round, prompt
    revise.jinja     the user turn that asks for the rewritten answer; sees principle, round, prompt, critique
    judge.jinja      the blocks `question` (the user turn) and `answer` (the start of the assistant's answer, up to
                     the option's letter), and `verdict`, the user turn that follows where the judge has reasoned in
                     between; sees principle, messages, responses, cot, wording, tie
    critique_check.jinja
                     the blocks `question` and `answer` (the start of the answer, up to Yes or No): whether a critique
                     points out a problem; sees principle, prompt, response, critique. `cai constitution test` reads
                     it, and runs that revise only where it does.
    applies.jinja    the blocks `question` and `answer`, as above: whether a principle applies to a prompt; sees
                     question, messages, prompt. Read where a principle has a question under `applies_to:`
    verify.jinja     the blocks `question` and `answer`, as above: whether a principle tells answers apart; sees
                     principle, messages, responses. Read with `judge.verify`
    rate.jinja       the blocks `question` and `answer` (the start of the answer, up to the number from 1 to 9): how
                     well an answer does by a principle; sees principle, messages, response. Read with `reward: judge`
    few_shot.yaml    optional: turns put before the conversation, under `revision:` and `judge:`

Of their variables, `principle` is a dict of its id, critique, revision and judge; `round` counts from 1; `prompt` is
the user's last message; `critique` is none when a run revises directly; `messages` is the conversation, a list of dicts
of role and content; `responses` is a dict of texts by letter; `cot` is whether the judge reasons first; `wording` is
which of several wordings of the question is wanted, from 1 on; `tie` is the letter of a tie, or none where a tie is no
option.

Model text reaches a template only as the value of a variable, so it is never itself a template. The folder may be a
stranger's: no file is read from outside it, by whatever link, and a template does no more than its sandbox allows.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator

from cai.config import yaml_files
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.config.yaml_files import load_yaml, read_text
from cai.constitution.principles import Constitution, Principle, questions
from cai.constitution.sandbox import MAX_SOURCE, Template
from cai.constitution.template_limits import TemplateFault
from cai.data.records import Message, Messages

VARIABLES = {
    "critique": {"principle", "round", "prompt"},
    "revise": {"principle", "round", "prompt", "critique"},
    "judge": {"principle", "messages", "responses", "cot", "wording", "tie"},
    "critique_check": {"principle", "prompt", "response", "critique"},
    "applies": {"question", "messages", "prompt"},
    "verify": {"principle", "messages", "responses"},
    "rate": {"principle", "messages", "response"},
}
RENAMED = {
    "request": "prompt",
    "conversation": "messages",
    "options": "responses",
    "answer": "response",
    "thinking": "cot",
}
RENAMED_FILES = {"critique_check": "finds"}
BEGUN = {"question", "answer"}
BLOCKS = {
    "judge": {"question", "answer", "verdict"},
    "critique_check": BEGUN,
    "applies": BEGUN,
    "verify": BEGUN,
    "rate": BEGUN,
}
OF_RUNS = ("critique", "revise", "judge")
OF_TESTS = (*OF_RUNS, "critique_check")
# templates that a folder may lack, and what needs them
ADDED = {"applies": "a question under applies_to", "verify": "judge.verify", "rate": "`reward: judge`"}
ALWAYS_READ = ("applies",)  # where a folder has it, so that the fingerprint does not depend on the constitution
FEW_SHOT = "few_shot.yaml"
SAMPLE: dict[str, Any] = {
    "principle": {"id": "sample", "critique": "What is wrong?", "revision": "Mend it.", "judge": "Which is better?"},
    "round": 1,
    "prompt": "Why do cats purr?",
    "critique": "It is too long.",
    "messages": [Message(role="user", content="Why do cats purr?")],
    "responses": {"A": "They are content.", "B": "Nobody knows."},
    "response": "They are content.",
    "wording": 1,
    "tie": None,
    "question": "Does the message ask about animals?",
}


def names_for(constitutions: Iterable[Constitution], names: tuple[str, ...] = OF_RUNS) -> tuple[str, ...]:
    """The templates that work by these constitutions needs: the given ones, and `applies` where they have questions."""
    return (*names, "applies") if any(questions(constitution) for constitution in constitutions) else names


class FewShot(yaml_files.Section):
    """Turns put before the conversation; each list alternates user and assistant."""

    revision: Messages = []
    judge: Messages = []

    @field_validator("revision", "judge")
    @classmethod
    def _alternate(cls, turns: Messages) -> Messages:
        roles = [turn["role"] for turn in turns]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(f"turns must alternate, user first and assistant last; found {', '.join(roles)}")
        return turns


class Form(NamedTuple):
    """How the judge's question is put: in which wording, from 1 on, and the letter of a tie where that is an option."""

    wording: int = 1
    tie: str | None = None


@lru_cache(maxsize=64)
def _compiled(source: str, name: str) -> Template:
    """The template `name` of a text: compiled once, because every run of a sweep reads the same folder."""
    return Template(source, VARIABLES[name], RENAMED)


class Templates:
    """A folder of templates, those with the given names checked when it is read.

    Raises: CaiError for a missing file, a file from outside the folder, a syntax error, an unknown variable or an
    error in rendering, with file and line.
    """

    def __init__(self, folder: Path, names: Sequence[str] = OF_RUNS) -> None:
        self.folder = folder
        names = [*dict.fromkeys((*names, *(name for name in ALWAYS_READ if (folder / f"{name}.jinja").exists())))]
        self._sources = {name: _source(folder, name) for name in names}
        few_shot = folder / FEW_SHOT
        self.few_shot = load_yaml(_within(few_shot), FewShot) if few_shot.exists() else FewShot()
        self._templates = {name: self._checked(name) for name in names}
        for name in names:
            self._tried(name)

    @cached_property
    def fingerprint(self) -> str:
        """Of every template's text and the few-shot turns."""
        return fingerprint(self._sources, self.few_shot.model_dump())

    def files(self) -> dict[str, str]:
        """The text of every file that was read, by its name."""
        few_shot = self.folder / FEW_SHOT
        texts = {f"{name}.jinja": source for name, source in self._sources.items()}
        return texts | ({FEW_SHOT: read_text(_within(few_shot))} if few_shot.exists() else {})

    def critique(self, principle: Principle, round: int, prompt: str) -> str:
        """The turn that asks for a critique of the answer just given to `prompt`, the user's last message."""
        return self._render("critique", {"principle": _texts(principle), "round": round, "prompt": prompt})

    def revise(self, principle: Principle, round: int, prompt: str, critique: str | None) -> str:
        """The turn that asks for the answer rewritten; `critique` is None when none was made."""
        values = {"principle": _texts(principle), "round": round, "prompt": prompt, "critique": critique}
        return self._render("revise", values)

    def judge(
        self,
        principle: Principle,
        messages: Messages,
        responses: dict[str, str],
        cot: str | None = None,
        form: Form = Form(),  # noqa: B008  # immutable
    ) -> Messages:
        """The conversation that puts responses, by letter, to the judge; it ends inside the judge's answer.

        `cot` is what the judge reasoned when `judge_cot` asked it to, in the same form.
        """
        values = _judged(principle, messages, responses, form)
        answer = Message(role="assistant", content=self._render("judge", values, block="answer"))
        if cot is None:
            question = Message(role="user", content=self._render("judge", values, block="question"))
            return [*self.few_shot.judge, question, answer]
        verdict = Message(role="user", content=self._render("judge", values, block="verdict"))
        reasoned = Message(role="assistant", content=cot)
        return [*self.judge_cot(principle, messages, responses, form), reasoned, verdict, answer]

    def judge_cot(
        self,
        principle: Principle,
        messages: Messages,
        responses: dict[str, str],
        form: Form = Form(),  # noqa: B008  # immutable
    ) -> Messages:
        """The conversation that asks the judge to reason about the responses before it chooses."""
        values = _judged(principle, messages, responses, form) | {"cot": True}
        return [*self.few_shot.judge, Message(role="user", content=self._render("judge", values, block="question"))]

    def check_wordings(self, count: int) -> None:
        """Raises: CaiError unless the judge's question has so many different wordings, as `judge.ensemble` asks."""
        sample = {name: value for name, value in SAMPLE.items() if name in VARIABLES["judge"]} | {"cot": False}
        numbers = range(1, count + 1)
        wordings = len({self._render("judge", sample | {"wording": n}, block="question") for n in numbers})
        if wordings < count:
            raise CaiError(
                f"{self.folder / 'judge.jinja'}: the question is the same for several values of `wording`; "
                f"judge.ensemble: {count} needs {count} wordings, found {wordings}"
            )

    def check_tie(self) -> None:
        """Raises: CaiError unless the judge's question offers a tie, as `judge.ties` asks."""
        sample = {name: value for name, value in SAMPLE.items() if name in VARIABLES["judge"]} | {"cot": False}
        if self._render("judge", sample, "question") == self._render("judge", sample | {"tie": "C"}, "question"):
            raise CaiError(
                f"{self.folder / 'judge.jinja'}: the question does not offer a tie, which judge.ties needs: name the "
                "letter `tie` where it is not none"
            )

    def critique_check(self, principle: Principle, prompt: str, response: str, critique: str) -> Messages:
        """The conversation that asks whether a critique of `response` points out a problem; ends inside the reply."""
        values = {"principle": _texts(principle), "prompt": prompt, "response": response, "critique": critique}
        question, start = (self._render("critique_check", values, block=block) for block in ("question", "answer"))
        return [Message(role="user", content=question), Message(role="assistant", content=start)]

    def applies(self, question: str, messages: Messages) -> Messages:
        """The conversation that asks the question of a principle about a prompt; ends inside the reply."""
        values = {"question": question, "messages": messages, "prompt": messages[-1]["content"]}
        text, start = (self._render("applies", values, block=block) for block in ("question", "answer"))
        return [Message(role="user", content=text), Message(role="assistant", content=start)]

    def verify(self, principle: Principle, messages: Messages, responses: dict[str, str]) -> Messages:
        """The conversation that asks whether a principle tells responses, by letter, apart; ends inside the reply."""
        values = {"principle": _texts(principle), "messages": messages, "responses": responses}
        text, start = (self._render("verify", values, block=block) for block in ("question", "answer"))
        return [Message(role="user", content=text), Message(role="assistant", content=start)]

    def rate(self, principle: Principle, messages: Messages, response: str) -> Messages:
        """The conversation that asks how well a response does by a principle; ends before the number."""
        values = {"principle": _texts(principle), "messages": messages, "response": response}
        text, start = (self._render("rate", values, block=block) for block in ("question", "answer"))
        return [Message(role="user", content=text), Message(role="assistant", content=start)]

    def _checked(self, name: str) -> Template:
        try:
            template = _compiled(self._sources[name], name)
        except TemplateFault as fault:
            raise self._error(name, fault) from fault
        expected = BLOCKS.get(name, set())
        if missing := expected - set(template.blocks):
            path = self.folder / f"{name}.jinja"
            raise CaiError(f"{path}: the block '{min(missing)}' is missing; expected {', '.join(sorted(expected))}")
        return template

    def _tried(self, name: str) -> None:
        """Render a template once, so that errors in it are reported before any model call."""
        blocks: list[str | None] = [*sorted(BLOCKS.get(name, ()))] or [None]
        for block, cot, tie in itertools.product(blocks, (False, True), (None, "C")):
            values = SAMPLE | {"cot": cot, "tie": tie}
            self._render(name, {key: values[key] for key in VARIABLES[name]}, block)

    def _render(self, name: str, values: dict[str, Any], block: str | None = None) -> str:
        try:
            return self._templates[name].render(values, block)
        except TemplateFault as fault:
            raise self._error(name, fault) from fault

    def _error(self, name: str, fault: TemplateFault) -> CaiError:
        return CaiError(f"{self.folder / name}.jinja:{fault.line}: {fault.message}")


def _judged(principle: Principle, messages: Messages, responses: dict[str, str], form: Form) -> dict[str, Any]:
    return {
        "principle": _texts(principle),
        "messages": messages,
        "responses": responses,
        "cot": False,
        "wording": form.wording,
        "tie": form.tie,
    }


def _texts(principle: Principle) -> dict[str, str]:
    """What a template sees of a principle: what is in its constitution's fingerprint, its weight apart."""
    return {
        "id": principle.id,
        "critique": principle.critique,
        "revision": principle.revision,
        "judge": principle.judge,
    }


def _source(folder: Path, name: str) -> str:
    path = folder / f"{name}.jinja"
    old = folder / f"{RENAMED_FILES.get(name, name)}.jinja"
    if not path.exists() and old.exists():
        raise CaiError(f"{old}: this template is named {path.name} now; rename the file")
    if name in ADDED and not path.exists():
        raise CaiError(f"{path}: this template is missing, which {ADDED[name]} needs; copy it from prompts/default")
    if (length := len(source := read_text(_within(path)))) > MAX_SOURCE:
        raise CaiError(f"{path}: {length:,} characters; expected a template of at most {MAX_SOURCE:,}")
    return source


def _within(path: Path) -> Path:
    """A path, or a CaiError when it is a link out of its folder, or something that is read without end."""
    try:
        inside = path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise CaiError(f"{path}: a link to outside the template folder; put a copy of the file in its place")
    if path.exists() and not path.is_file():
        raise CaiError(f"{path}: not a file")
    return path
