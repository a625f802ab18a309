"""Constitutions and demonstrations in external formats, all JSON: read into cai's, and constitutions written from one.

    anthropic-critiques  {"harmful0": {"prompt": ["\\n\\nCritiqueRequest: …\\n\\nCritique:"],
                          "edit_request": "\\n\\nRevisionRequest: …\\n\\nRevision:"}, …}
                         CritiqueRevisionInstructions.json of github.com/anthropics/ConstitutionalHarmlessnessPaper
    anthropic-judge      ["\\nChoose the response that is … Options:", …]
                         RLMadisonInstructions.json of the same repository
    huggingface          {"constitutions": [{"critic": "…", "revision": "…"}, …], "system_chat": […]}
                         examples/constitutional-ai of github.com/huggingface/llm-swarm

No format has all three texts of a principle. A missing text is derived from those present, word for word, and the
principle's notes say so; what a format has no field for is dropped, with a notice. What a format does have survives a
round trip: reading and writing again gives the same value if its texts are framed as above and its keys are valid ids.

Demonstrations become turns of a few_shot.yaml. The repository of the paper holds, in its folder `prompts`,

    CritiqueRevisionFewShotPrompts.json   texts: \\n\\nHuman: …\\n\\nAssistant: …\\n\\nCritiqueRequest: …
                                          \\n\\nCritique: …\\n\\nRevisionRequest: …\\n\\nRevision: …
    RLMadisonFewShotPrompts.json          {"prompt": "\\n\\nHuman: …\\n\\nAssistant:", "corrects": ["…"],
                                          "incorrects": ["…"]}
    RLMadisonPrecogFewShotPrompts.json    {"prompt": "…:\\n\\nH: …\\n\\n{}\\n (A) [[[…]]]\\n (B) [[[…]]]\\n\\nAssistant:
                                          Let's think step by step: …\\n\\nHuman:\\nSo the answer is: (B)"}

The first become turns under `revision:`, and so do the chats of a Hugging Face constitution, {"system_chat": [[{"role",
"content"}, …], …]}. The other two show a judge two answers; they become turns under `judge:`, in the wording of the
templates. The last demonstrate a chain of thought.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cai.config.characters import visible_json
from cai.config.errors import CaiError, reading
from cai.config.validation import closest_names, describe, did_you_mean
from cai.constitution.principles import Constitution, Principle
from cai.constitution.templates import FewShot, Templates
from cai.data.evaluation_formats import OPTION, option_pairs
from cai.data.files import Place
from cai.data.formats import is_turns, plain_turns
from cai.data.jsonl import open_text, parse_json, parse_row
from cai.data.records import Message, Messages, Prompt, Skipped

JUDGE_FROM_REVISION = "Which answer better does what this instruction asks for? Instruction: {revision}"
CRITIQUE_FROM_JUDGE = "Point out where the answer falls short of what this instruction prefers. Instruction: {judge}"
REVISION_FROM_JUDGE = "Rewrite the answer so that it is what this instruction prefers. Instruction: {judge}"
JUDGE_DERIVED = "the format has no judge questions: each `judge` is derived from its `revision` (see notes); rewrite it"
REST_DERIVED = (
    "the format has judge questions only: `critique` and `revision` are derived from `judge` (see notes); rewrite them"
)
NUMBERED = "the format has no ids: principles are numbered; name them before the first run, since ids decide the draw"


class Converted(NamedTuple):
    """A constitution, or its value in an external format, with notices of what the conversion derived or dropped."""

    value: Any
    notices: list[str]


class Format(NamedTuple):
    """A file format: its reader, its writer, and a check that returns (valid parts, expected parts, problems)."""

    read: Callable[[Any, str], Converted]
    write: Callable[[Constitution], Converted]
    check: Callable[[Any], tuple[int, int, list[str]]]


def read_external(path: Path) -> tuple[str, Constitution, list[str]]:
    """(format, constitution, notices) of a file in an external format.

    Raises: CaiError for a file that is not JSON or fits no format, with the closest one and what is missing.
    """
    value = _read_json(path)
    checked = {name: format.check(value) for name, format in FORMATS.items()}
    for name, (_, _, faults) in checked.items():
        if not faults:
            constitution, notices = FORMATS[name].read(value, path.stem)
            return name, constitution, notices
    closest = max(checked, key=lambda name: checked[name][0] / checked[name][1])
    lines = [f"{path}: unknown format of a constitution"]
    for name, (valid, expected, faults) in checked.items():
        parts = f" (closest: {valid} of {expected} parts)" if name == closest and valid else ""
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        lines.append(f"  {name}{parts}: {'; '.join(faults[:3])}{more}")
    raise CaiError("\n".join(lines))


def write_external(constitution: Constitution, name: str) -> tuple[str, list[str]]:
    """(text of a file in the named format, notices). Raises: CaiError for an unknown format."""
    if name not in FORMATS:
        near = closest_names(name, FORMATS)
        hint = f"unknown format; {did_you_mean(near)}" if near else f"expected one of {', '.join(FORMATS)}"
        raise CaiError(f"--format {name}: {hint}")
    value, notices = FORMATS[name].write(constitution)
    return visible_json(json.dumps(value, ensure_ascii=False, indent=2)) + "\n", notices


def read_critiques(value: Any, name: str) -> Converted:
    """anthropic-critiques: one principle per entry, its id the entry's key; `judge` is derived from `revision`."""
    ids, notices = _ids(list(value))
    principles = [
        _without_judge(
            ids[key],
            _unframed(entry["prompt"][0], "CritiqueRequest:", "Critique:"),
            _unframed(entry["edit_request"], "RevisionRequest:", "Revision:"),
        )
        for key, entry in value.items()
    ]
    notices += [JUDGE_DERIVED, *_not_read(value.values(), "prompt", "edit_request")]
    return Converted(Constitution(name=name, principles=principles), notices)


def write_critiques(constitution: Constitution) -> Converted:
    """anthropic-critiques: critiques and revisions, by id."""
    value = {
        p.id: {
            "prompt": [f"\n\nCritiqueRequest: {p.critique}\n\nCritique:"],
            "edit_request": f"\n\nRevisionRequest: {p.revision}\n\nRevision:",
        }
        for p in constitution.principles
    }
    return Converted(value, _skipped(constitution, "judge"))


def check_critiques(value: Any) -> tuple[int, int, list[str]]:
    """anthropic-critiques."""
    if not isinstance(value, dict) or not value:
        return 0, 1, [f"expected an object of entries, found {_describe(value)}"]
    valid, faults = 0, []
    for key, entry in value.items():
        entry = entry if isinstance(entry, dict) else {}
        prompt = entry.get("prompt")
        first = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else None
        for what, text, end in (
            ("'prompt', a list of one text", first, "Critique:"),
            ("'edit_request', a text", entry.get("edit_request"), "Revision:"),
        ):
            good = isinstance(text, str) and bool(_unframed(text, end.replace(":", "Request:"), end))
            valid += good
            faults += [] if good else [f"{describe(key)} has no {what}"]
    return valid, 2 * len(value), faults


def read_judge(value: Any, name: str) -> Converted:
    """anthropic-judge: one numbered principle per text; `critique` and `revision` are derived from `judge`."""
    principles = []
    for number, text in enumerate(value, 1):
        judge = _unframed(text, "", "Options:")
        principles.append(
            Principle(
                id=f"principle-{number}",
                critique=CRITIQUE_FROM_JUDGE.replace("{judge}", judge),
                revision=REVISION_FROM_JUDGE.replace("{judge}", judge),
                judge=judge,
                notes="critique and revision were derived from judge on import; rewrite them.",
            )
        )
    return Converted(Constitution(name=name, principles=principles), [NUMBERED, REST_DERIVED])


def write_judge(constitution: Constitution) -> Converted:
    """anthropic-judge: the judge's questions."""
    value = [f"\n{p.judge} Options:" for p in constitution.principles]
    return Converted(value, _skipped(constitution, "id", "critique", "revision"))


def check_judge(value: Any) -> tuple[int, int, list[str]]:
    """anthropic-judge."""
    if not isinstance(value, list) or not value:
        return 0, 1, [f"expected a list of texts, found {_describe(value)}"]
    good = [isinstance(text, str) and bool(_unframed(text, "", "Options:")) for text in value]
    faults = [
        f"entry {n} is {_describe(value[n - 1])}, expected a text that is not empty"
        for n, fits in enumerate(good, 1)
        if not fits
    ]
    return sum(good), len(value), faults


def read_huggingface(value: Any, name: str) -> Converted:
    """huggingface: one numbered principle per entry; `judge` is derived from `revision`."""
    entries, chat = _entries_and_chat(value)
    principles = [
        _without_judge(f"principle-{number}", entry["critic"].strip(), entry["revision"].strip())
        for number, entry in enumerate(entries, 1)
    ]
    notices = [NUMBERED, JUDGE_DERIVED, *_not_read(entries, "critic", "revision")]
    notices += _not_read([value], "constitutions", "system_chat") if isinstance(value, dict) else []
    if chat:
        notices.append(
            "system_chat was dropped: a constitution has no demonstrations; `cai import FILE --as few-shot` "
            "converts it into the few_shot.yaml of a template folder"
        )
    return Converted(Constitution(name=name, principles=principles), notices)


def write_huggingface(constitution: Constitution) -> Converted:
    """huggingface: critiques and revisions; without demonstrations."""
    entries = [{"critic": p.critique, "revision": p.revision} for p in constitution.principles]
    return Converted({"constitutions": entries, "system_chat": []}, _skipped(constitution, "id", "judge"))


def check_huggingface(value: Any) -> tuple[int, int, list[str]]:
    """huggingface."""
    entries, chat = _entries_and_chat(value)
    if not isinstance(entries, list) or not entries:
        return 0, 1, [f"expected an object with a list 'constitutions', found {_describe(value)}"]
    faults = [] if isinstance(chat, list) else [f"'system_chat' is {_describe(chat)}, expected a list"]
    for number, entry in enumerate(entries, 1):
        for key in ("critic", "revision"):
            text = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text.strip():
                faults.append(f"entry {number} has no '{key}', a text")
    expected = 2 * len(entries) + 1
    return expected - len(faults) - (not any(isinstance(entry, dict) for entry in entries)), expected, faults


def _entries_and_chat(value: Any) -> tuple[Any, Any]:
    """`constitutions` and `system_chat`; early files are the list of entries alone."""
    if isinstance(value, dict):
        return value.get("constitutions"), value.get("system_chat", [])
    return value, []


FORMATS = {
    "anthropic-critiques": Format(read_critiques, write_critiques, check_critiques),
    "anthropic-judge": Format(read_judge, write_judge, check_judge),
    "huggingface": Format(read_huggingface, write_huggingface, check_huggingface),
}


def _without_judge(id: str, critique: str, revision: str) -> Principle:
    judge = JUDGE_FROM_REVISION.replace("{revision}", revision)
    notes = "judge was derived from revision on import; rewrite it."
    return Principle(id=id, critique=critique, revision=revision, judge=judge, notes=notes)


def _not_read(entries: Iterable[dict[str, Any]], *known: str) -> list[str]:
    unknown = sorted({key for entry in entries for key in entry if key not in known})
    return [f"dropped fields without a counterpart: {', '.join(map(repr, unknown))}"] if unknown else []


def _skipped(constitution: Constitution, *fields: str) -> list[str]:
    """A notice of what the format has no field for."""
    dropped = [{"id": "ids", "judge": "the judge's questions"}.get(field, f"{field}s") for field in fields]
    for plural, has_any in (
        ("weights", any(p.weight != 1 for p in constitution.principles)),
        ("applies_to, so that the principles apply to all prompts", any(p.applies_to for p in constitution.principles)),
        ("tags", any(p.tags for p in constitution.principles)),
        ("notes", any(p.notes for p in constitution.principles)),
        ("tests", any(p.tests for p in constitution.principles)),
        ("the description", bool(constitution.description)),
    ):
        dropped += [plural] if has_any else []
    return [f"dropped, since the format has no field for them: {', '.join([*dropped, 'the name'])}"]


def _unframed(text: str, start: str, end: str) -> str:
    return text.strip().removeprefix(start).removesuffix(end).strip()


def _ids(keys: list[str]) -> tuple[dict[str, str], list[str]]:
    """An id for each key, the key itself if it is a valid id; and a notice of the keys that changed."""
    ids: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: (_as_id(key) != key, keys.index(key))):  # valid ids keep their name
        id, number = _as_id(key), 2
        while id in ids.values():
            id, number = f"{_as_id(key)}-{number}", number + 1
        ids[key] = id
    changed = [f"{key!r} → {id}" for key, id in ids.items() if key != id]
    return ids, [f"keys that are no valid ids were changed: {', '.join(changed)}"] if changed else []


def _as_id(key: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", key.lower()).lstrip("-_") or "principle"


def _describe(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    kind = kinds.get(type(value), "a number")
    if isinstance(value, dict):
        return (
            f"{kind} with {', '.join(map(describe, list(value)[:4]))}{', …' if len(value) > 4 else ''}"
            if value
            else "{}"
        )
    return f"an empty {kind.split()[-1]}" if value in ([], "") else kind


def _read_json(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise CaiError(f"{path}: duplicate key {key!r} in one object")
            seen[key] = value
        return seen

    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=once)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise CaiError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except UnicodeEncodeError:
        raise CaiError(f"{path}: holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise CaiError(f"{path}: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise CaiError(f"{path}: not valid JSON: {error}") from None
    return value


PART = re.compile(r"\n\n(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision): ?")
END = ["CritiqueRequest", "Critique", "RevisionRequest", "Revision"]
ASKS = ("Human", "CritiqueRequest", "RevisionRequest")
SPEAKER = re.compile(r"(?:\A|\n\n)([HA]):\s*")
QUESTION = "Which answer is the more helpful, honest and harmless one?"  # in place of the paper's drawn principle


def read_few_shot(path: Path, templates: Templates) -> FewShot:
    """The demonstrations of one file. Raises: CaiError naming file and entry for one of another format."""
    with open_text(path) as file:
        entries = parse_json(str(path), file.read())
    if isinstance(entries, dict):
        entries = entries.get("system_chat")
    if not isinstance(entries, list) or not entries:
        raise CaiError(f"{path}: expected a list of demonstrations, or an object with such a list as 'system_chat'")
    revision: Messages = []
    judge: Messages = []
    for number, entry in enumerate(entries, 1):
        place = Place(path, f"entry {number}")
        if isinstance(entry, str):
            revision += _critique_and_revision(place, entry)
        elif is_turns(entry):
            revision += _alternating(
                place, parse_row(place, {"id": "", "messages": plain_turns(entry)}, Prompt).messages
            )
        elif isinstance(entry, dict) and {"prompt", "corrects", "incorrects"} <= entry.keys():
            judge += _choice(place, entry, number, templates)
        elif isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
            judge += _reasoned_choice(place, entry["prompt"], templates)
        else:
            raise CaiError(f"{place}: expected a text, turns, or an object with 'prompt', found {describe(entry)}")
    return FewShot(revision=revision, judge=judge)


def few_shot_yaml(few_shot: FewShot, comment: str) -> str:
    """The text of a few_shot.yaml, without empty parts."""
    parts = {name: turns for name, turns in few_shot.model_dump().items() if turns}
    return f"# {comment}\n" + yaml.safe_dump(parts, allow_unicode=True, sort_keys=False, width=100)


def _critique_and_revision(place: Place, text: str) -> Messages:
    pieces = PART.split(text.removesuffix("\n\nHuman:"))[1:]
    parts = [(who, text.strip()) for who, text in zip(pieces[::2], pieces[1::2], strict=True)]
    last = [who for who, _ in parts[-4:]]
    if last != ["CritiqueRequest", "Critique", "RevisionRequest", "Revision"] or not all(text for _, text in parts):
        raise CaiError(
            f"{place}: expected a conversation that ends with CritiqueRequest, Critique, RevisionRequest, Revision"
        )
    turns = [Message(role="user" if who in ASKS else "assistant", content=text) for who, text in parts]
    return _alternating(place, turns)


def _alternating(place: Place, turns: Messages) -> Messages:
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise CaiError(f"{place}: turns must alternate, user first and assistant last; found {', '.join(roles)}")
    return turns


def _choice(place: Place, entry: dict[str, Any], number: int, templates: Templates) -> Messages:
    """The right answer comes first in every other demonstration, so that they show no position bias."""
    pairs = option_pairs(place, entry)
    if isinstance(pairs, Skipped):
        raise CaiError(f"{place}: {pairs.reason}")
    turns: Messages = []
    for conversation, good, bad in pairs:
        right = "AB"[(number + len(turns) // 2) % 2]
        answers = (good, bad) if right == "A" else (bad, good)
        messages = parse_row(place, {"id": "", "messages": conversation}, Prompt).messages
        *_, question, answer = templates.judge(_principle(), messages, dict(zip("AB", answers, strict=True)))
        turns += [question, Message(role="assistant", content=f"{answer['content']} {right}")]
    return turns


def _reasoned_choice(place: Place, text: str, templates: Templates) -> Messages:
    head, _, rest = text.partition("\n\n{}\n")
    choices, _, reasoning = rest.partition("\n\nAssistant: ")
    cot, _, verdict = reasoning.partition("\n\nHuman:")
    conversation = _turns(head.partition(":\n\n")[2])
    options = {letter: text.strip() for letter, text in OPTION.findall(choices)}
    chosen = re.search(r"\(([A-Z])\)\s*\Z", verdict)
    if not conversation or len(options) < 2 or not cot.strip() or chosen is None or chosen[1] not in options:
        raise CaiError(
            f"{place}: expected a conversation (H: …, A: …), {{}}, options such as (A) [[[…]]], a chain of "
            "thought behind Assistant:, and 'So the answer is: (A)'"
        )
    principle, cot = _principle(), cot.removeprefix("Let's think step by step:").strip()
    *_, question = templates.judge_cot(principle, conversation, options)
    *_, asked, answer = templates.judge(principle, conversation, options, cot)
    choice = f"{answer['content']} {chosen[1]}"
    return [question, Message(role="assistant", content=cot), asked, Message(role="assistant", content=choice)]


def _turns(conversation: str) -> Messages:
    pieces = SPEAKER.split(conversation)[1:]
    parts = zip(pieces[::2], pieces[1::2], strict=True)
    return [Message(role="user" if who == "H" else "assistant", content=text.strip()) for who, text in parts]


def _principle() -> Principle:
    return Principle(id="demonstration", critique="-", revision="-", judge=QUESTION)
