"""Constitutions written as YAML for further editing: folded texts, and no key that has its default."""

import textwrap

import yaml

from cai.constitution.principles import TEXTS, AppliesTo, Constitution, Principle, PrincipleTest

WIDTH = 100  # columns of folded text, indentation not counted, as in the shipped constitutions
NO_BREAK_SPACES = "\xa0\u202f"  # ordinary in French
STARTER = """\
# A constitution. Check it with `cai constitution lint`, try it with `cai try`, and name it in a run file as
# `constitution:`. For completion and checks in an editor, write the schema beside it,
#     cai schema constitution --out constitution.schema.json
# and make this the first line:  yaml-language-server: $schema=constitution.schema.json  (behind a #).
name: {name}
description: >-
  One sentence about answers that follow these principles.
principles:
  # A principle asks for one thing, in three texts about that thing. Describe what the answer does ("gives the source
  # of every number") rather than a trait ("is honest"), and what to do rather than what not to do.
  - id: concrete-example   # decides which prompts draw it: reword the texts freely, but keep the id
    # What to look for in the model's last answer.
    critique: >-
      Point out every general statement in the answer that comes without an example. Quote it, and name an example
      that would make it clear.
    # What the new answer must do.
    revision: >-
      Rewrite the answer so that every general statement comes with a short, concrete example from daily life.
    # Which of two answers is better? Both orders are judged, so the question must not name a position.
    judge: >-
      Which answer makes its general statements clearer, with a short, concrete example for each?
    # Optional: how often it is sampled relative to the others (default 1), the prompts it is sampled for (default all:
    # `applies_to: {question: Does the message ask for an explanation?}`), and notes for people.
    weight: 1
    tags: [clarity]
    notes: >-
      A placeholder: replace it with a principle of your own.
    # Optional: what the three texts must do on an example. `cai constitution test` asks a model and checks it.
    tests:
      - prompt: Why should I compare prices?
        draft: Comparing prices is sensible, because small differences add up.
        critique: finds              # the critique of this draft finds a problem; `finds nothing` where it must not
        revision:
          lacks: [sensible]          # the revision must not contain this; `contains` lists what it must
        better: >-
          Comparing prices pays: milk that is 20 cents cheaper saves a family with a litre a day 73 euros a year.

  # Add principles below in the same form. Ids must be unique; their order has no effect.
"""


def starter(name: str) -> str:
    """A commented constitution file with one principle to start from."""
    return STARTER.replace("{name}", scalar(name))


def constitution_yaml(constitution: Constitution, comments: list[str] | None = None) -> str:
    """A constitution as a YAML file that loads as an equal one; `comments` become its first lines."""
    lines = ["# " + "".join(c if _is_plain(c) else " " for c in comment) for comment in comments or []]
    lines.append(f"name: {scalar(constitution.name)}")
    if constitution.description:
        lines += _text("description", constitution.description, "")
    lines.append("principles:")
    for principle in constitution.principles:
        lines += [*_principle(principle), ""]
    return "\n".join(lines[:-1]) + "\n"


def _principle(principle: Principle) -> list[str]:
    lines = [f"  - id: {scalar(principle.id)}"]
    for field in TEXTS:
        lines += _text(field, getattr(principle, field), "    ")
    if principle.applies_to is not None:
        lines += _applies_to(principle.applies_to)
    if principle.tags:
        lines.append(f"    tags: [{', '.join(map(scalar, principle.tags))}]")
    if principle.weight != 1:
        whole = principle.weight.is_integer() and principle.weight < 1e6
        lines.append(f"    weight: {scalar(int(principle.weight) if whole else principle.weight)}")
    if principle.notes:
        lines += _text("notes", principle.notes, "    ")
    if principle.tests:
        lines.append("    tests:")
        for test in principle.tests:
            first, *others = _test(test, "        ")
            lines += [f"      - {first.strip()}", *others]
    return lines


def _applies_to(where: AppliesTo) -> list[str]:
    lines = ["    applies_to:"]
    if where.tags:
        lines.append(f"      tags: [{', '.join(map(scalar, where.tags))}]")
    return lines + (_text("question", where.question, "      ") if where.question is not None else [])


def _test(test: PrincipleTest, indent: str) -> list[str]:
    lines = []
    for field, value in test.model_dump(exclude_defaults=True).items():
        if field == "revision":
            lines.append(f"{indent}revision:")
            lines += [f"{indent}  {key}: [{', '.join(map(scalar, phrases))}]" for key, phrases in value.items()]
        else:
            long = isinstance(value, str) and len(value) > WIDTH - len(indent)
            lines += _text(field, value, indent) if long else [f"{indent}{field}: {scalar(value)}"]
    return lines


def _text(key: str, text: str, indent: str) -> list[str]:
    """A key and its text: folded for one paragraph, literal for several lines, else quoted."""
    lines = text.split("\n")
    if not all(_is_plain(line) and line == line.strip(" ") for line in lines) or not (lines[0] and lines[-1]):
        return [f"{indent}{key}: {scalar(text)}"]
    if len(lines) > 1:
        return [f"{indent}{key}: |-", *(f"{indent}  {line}" if line else "" for line in lines)]
    if not all(word.strip() for word in text.split(" ")):  # two spaces, or a word of no-break spaces
        return [f"{indent}{key}: {scalar(text)}"]
    folded = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}{key}: >-", *(f"{indent}  {line}" for line in folded)]


def _is_plain(text: str) -> bool:
    """Whether a block scalar can hold a line unchanged, with all of it visible."""
    return all(c.isprintable() or c in NO_BREAK_SPACES for c in text)


def scalar(value: str | float) -> str:
    """A value on one line, quoted where YAML would misread it, with invisible characters escaped."""
    if isinstance(value, str) and not _is_plain(value):
        seen = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if _is_plain(c) else f"\\U{ord(c):08x}" for c in seen) + '"'
    # within a list, so that commas and brackets are quoted too
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
