"""Prompt templates: a folder of Jinja files a person edits, rendered in a sandbox.

    critique.jinja   the user turn that asks for a critique of the last answer; sees principle, round, request
    revise.jinja     the user turn that asks for the rewritten answer; sees principle, round, request, critique
    judge.jinja      the blocks `question` (the user turn) and `answer` (the start of the assistant's answer, up to
                     the option's letter), and `verdict`, the user turn that follows where the judge has reasoned in
                     between; sees principle, conversation, options, thinking (whether it is to reason first)
    finds.jinja      the blocks `question` and `answer` (the start of the answer, up to Yes or No): whether a critique
                     points out a problem; sees principle, request, answer, critique. `cai constitution test` alone
                     reads it; runs do without.
    few_shot.yaml    optional: turns put before the conversation, under `revision:` and `judge:`

Model text reaches a template only as the value of a variable, so it is never itself a template.
"""

import itertools
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import field_validator

from cai.config import yaml_files
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.config.yaml_files import load_yaml
from cai.constitution.principles import Principle
from cai.data.records import Message, Messages

VARIABLES = {
    "critique": {"principle", "round", "request"},
    "revise": {"principle", "round", "request", "critique"},
    "judge": {"principle", "conversation", "options", "thinking"},
    "finds": {"principle", "request", "answer", "critique"},
}
BLOCKS = {"judge": {"question", "answer", "verdict"}, "finds": {"question", "answer"}}
OF_RUNS = ("critique", "revise", "judge")
OF_TESTS = (*OF_RUNS, "finds")
SAMPLE: dict[str, Any] = {
    "principle": Principle(id="sample", critique="What is wrong?", revision="Mend it.", judge="Which is better?"),
    "round": 1,
    "request": "Why do cats purr?",
    "critique": "It is too long.",
    "conversation": [Message(role="user", content="Why do cats purr?")],
    "options": {"A": "They are content.", "B": "Nobody knows."},
    "answer": "They are content.",
}


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


class Templates:
    """A folder of templates, those with the given names checked when it is read.

    Raises: CaiError for a missing file, a syntax error, an unknown variable or an error in rendering, with file and
    line.
    """

    def __init__(self, folder: Path, names: Sequence[str] = OF_RUNS) -> None:
        self.folder = folder
        self._sources = {name: yaml_files.read_text(folder / f"{name}.jinja") for name in names}
        self._environment = ImmutableSandboxedEnvironment(
            loader=jinja2.DictLoader(self._sources),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        few_shot = folder / "few_shot.yaml"
        self.few_shot = load_yaml(few_shot, FewShot) if few_shot.exists() else FewShot()
        self._templates = {name: self._checked(name) for name in names}
        for name in names:
            self._tried(name)

    @property
    def fingerprint(self) -> str:
        """Of every template's text and the few-shot turns."""
        return fingerprint(self._sources, self.few_shot.model_dump())

    def critique(self, principle: Principle, round: int, request: str) -> str:
        """The turn that asks for a critique of the answer just given to `request`, the user's last message."""
        return self._render("critique", {"principle": principle, "round": round, "request": request})

    def revise(self, principle: Principle, round: int, request: str, critique: str | None) -> str:
        """The turn that asks for the answer rewritten; `critique` is None when none was made."""
        values = {"principle": principle, "round": round, "request": request, "critique": critique}
        return self._render("revise", values)

    def judge(
        self, principle: Principle, conversation: Messages, options: dict[str, str], thought: str | None = None
    ) -> Messages:
        """The conversation that puts responses, by letter, to the judge; it ends inside the judge's answer.

        `thought` is what the judge reasoned when `judge_thought` asked it to.
        """
        values = {"principle": principle, "conversation": conversation, "options": options, "thinking": False}
        answer = Message(role="assistant", content=self._render("judge", values, block="answer"))
        if thought is None:
            question = Message(role="user", content=self._render("judge", values, block="question"))
            return [*self.few_shot.judge, question, answer]
        verdict = Message(role="user", content=self._render("judge", values, block="verdict"))
        reasoned = Message(role="assistant", content=thought)
        return [*self.judge_thought(principle, conversation, options), reasoned, verdict, answer]

    def judge_thought(self, principle: Principle, conversation: Messages, options: dict[str, str]) -> Messages:
        """The conversation that asks the judge to reason about the responses before it chooses."""
        values = {"principle": principle, "conversation": conversation, "options": options, "thinking": True}
        return [*self.few_shot.judge, Message(role="user", content=self._render("judge", values, block="question"))]

    def finds(self, principle: Principle, request: str, answer: str, critique: str) -> Messages:
        """The conversation that asks whether a critique of `answer` points out a problem; it ends inside the reply."""
        values = {"principle": principle, "request": request, "answer": answer, "critique": critique}
        question, start = (self._render("finds", values, block=block) for block in ("question", "answer"))
        return [Message(role="user", content=question), Message(role="assistant", content=start)]

    def _checked(self, name: str) -> jinja2.Template:
        path = self.folder / f"{name}.jinja"
        try:
            tree = self._environment.parse(self._sources[name])
            template = self._environment.get_template(name)
        except jinja2.TemplateSyntaxError as error:
            raise CaiError(f"{path}:{error.lineno}: not a valid template: {error.message}") from error
        for unknown in sorted(meta.find_undeclared_variables(tree) - VARIABLES[name]):
            line = min(node.lineno for node in tree.find_all(nodes.Name) if node.name == unknown)
            known = ", ".join(sorted(VARIABLES[name]))
            raise CaiError(f"{path}:{line}: unknown variable '{unknown}'; this template sees {known}")
        expected = BLOCKS.get(name, set())
        if missing := expected - template.blocks.keys():
            raise CaiError(f"{path}: the block '{min(missing)}' is missing; expected {', '.join(sorted(expected))}")
        return template

    def _tried(self, name: str) -> None:
        """Render a template once, so that errors in it are reported before any model call."""
        blocks: list[str | None] = [*sorted(BLOCKS.get(name, ()))] or [None]
        for block, thinking in itertools.product(blocks, (False, True)):
            values = SAMPLE | {"thinking": thinking}
            self._render(name, {key: values[key] for key in VARIABLES[name]}, block)

    def _render(self, name: str, values: dict[str, Any], block: str | None = None) -> str:
        template = self._templates[name]
        render = template.root_render_func if block is None else template.blocks[block]
        try:
            return "".join(render(template.new_context(values))).strip()
        except Exception as error:  # a template may do whatever an expression of Python's can
            reason = (
                f"no template is named '{error.name}'" if isinstance(error, jinja2.TemplateNotFound) else str(error)
            )
            raise CaiError(f"{self._place(name, error)}: {reason}") from error

    def _place(self, name: str, error: Exception) -> str:
        """The file and line that an error comes from."""
        place = str(self.folder / f"{name}.jinja")
        for frame, line in traceback.walk_tb(error.__traceback__):
            if (template := frame.f_globals.get("__jinja_template__")) is not None:
                place = f"{self.folder / template.name}.jinja:{template.get_corresponding_lineno(line)}"
        return place
