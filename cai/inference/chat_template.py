"""The chat template that a model is asked and trained with: its own or a given one, with arguments and a system prompt.

Whatever renders a conversation (feedback, judges, vLLM, trl, PPO, reward models, scoring) reads the one string
`tokenizer.chat_template`. So the settings are written into it, as assignments before the template's first character: a
policy trained with them is saved with them, and behaves outside cai as it was trained. Values are literals that cannot
end the assignment. A first line, a comment, says which settings they are, so that others can take their place.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import jinja2
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from cai.config.errors import CaiError
from cai.config.locate import find_file, shipped_file
from cai.config.yaml_files import JsonValue, Section, read_text
from cai.data.records import Message, Messages
from cai.inference.chat import ChatTokenizer, turn_end
from cai.inference.models import Model, Server

SHIPPED = "prompts/chat"  # the folder of shipped chat templates
JINJA = re.compile(r"[{}\n]")  # in a template itself, and in no name of one; as vLLM's --chat-template tells them apart
SET_BY_RENDERING = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"}
)
"""Variables of a chat template that whoever renders it sets."""
_MARKED = re.compile(r"\{#- cai: (\{[^\n#]*\}) -#\}\n")
_PRINTED = re.compile(r'[^"\\{}%#]')


def _argument_names(arguments: dict[str, Any]) -> dict[str, Any]:
    for name in arguments:
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in SET_BY_RENDERING or not _assignable(name):
            message = f"expected names of a chat template's variables, such as enable_thinking, found {name!r}"
            raise PydanticCustomError("argument_name", "{m}", {"m": message})
    return arguments


def _assignable(name: str) -> bool:
    try:
        parsed = jinja2.Environment().from_string("{% set " + name + " = 1 %}{{ " + name + " }}").render()
    except jinja2.TemplateError:
        return False
    return parsed == "1"


class ChatSettings(Section):
    """How conversations are put to one model: fields of `engine:` that belong to it and to no other model."""

    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """Chat template in place of the model's own, or for a base model without one: a file, the name of a shipped one
    (chatml, human_assistant), or the Jinja text itself."""
    chat_template_kwargs: Annotated[dict[str, JsonValue], AfterValidator(_argument_names)] = {}
    """Arguments of the chat template, such as {enable_thinking: false}."""
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """System prompt of conversations that begin with none."""

    @property
    def chat(self) -> "ChatSettings | None":
        """These fields alone, of a section that has others too; None where none is set."""
        fields = {name: getattr(self, name) for name in ChatSettings.model_fields}
        chat = ChatSettings.model_construct(**fields)
        return None if chat == ChatSettings() else chat

    def served(self, messages: Messages) -> dict[str, Any]:
        """The fields of a request to a server, which renders the conversation by the model's own template."""
        begun = self.system_prompt is None or messages[0]["role"] == "system"
        system = [] if begun else [Message(role="system", content=self.system_prompt or "")]
        arguments = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {"messages": [*system, *messages], **arguments}

    def identity(self) -> dict[str, Any]:
        """The fields that are set, as JSON."""
        fields = self.model_dump(include=set(ChatSettings.model_fields))
        return {name: value for name, value in fields.items() if value}


AnyChat = TypeVar("AnyChat", bound=ChatSettings)


def template_text(name: str, place: str, run_file: Path) -> str:
    """The text of a chat template that a run file names, at `place`; a text of one itself is returned.

    Raises: CaiError where it is no file, from the working directory or the run file's folder, and none of the shipped.
    """
    if JINJA.search(name):
        return name
    file = shipped_file(f"{SHIPPED}/{name}.jinja")
    if not file.is_file():
        try:
            file = find_file(place, name, run_file)
        except CaiError as error:
            raise CaiError(f"{error}; shipped are {', '.join(shipped_templates())}") from None
    return read_text(file)


def with_template_text(settings: AnyChat, place: str, run_file: Path) -> AnyChat:
    """Settings with the text of the chat template that they name. Raises: CaiError, as `template_text`."""
    if settings.chat_template is None:
        return settings
    text = template_text(settings.chat_template, f"{place}.chat_template", run_file)
    return settings.model_copy(update={"chat_template": text})


def check_chat(model: Model, chat: ChatSettings | None, place: str) -> None:
    """Raises: CaiError for settings, at `place`, that a model does not take, or a model that needs a chat template."""
    if isinstance(model, Server):
        if chat is not None and chat.chat_template is not None:
            raise CaiError(f"{place}.chat_template: {model} is a server's model, whose template is the server's")
    elif chat is not None or not _may_have_template(model):
        load_tokenizer(model, chat, place)


def _may_have_template(folder: Path) -> bool:
    """Whether a folder's files hold a chat template, as far as that shows without loading its tokenizer."""
    config = folder / "tokenizer_config.json"
    if not config.is_file() or any(folder.glob("chat_template*")):
        return True
    return "chat_template" in config.read_text(encoding="utf-8", errors="replace")


def shipped_templates() -> list[str]:
    """The names of the chat templates that come with cai."""
    return sorted(path.stem for path in shipped_file(SHIPPED).glob("*.jinja"))


def load_tokenizer(model: Path, chat: ChatSettings | None = None, place: str = "engine") -> Any:
    """The model's tokenizer, with the chat template that `chat` makes of its own; an end token pads where nothing does.

    `place` is where the settings stand in the run file. Every tokenizer of a model that is asked, trained or scored is
    loaded here.
    Raises: CaiError for a model without a chat template, and for settings that its template or tokenizer does not take.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None and (chat is None or chat.chat_template is None):
        raise CaiError(
            f"model {model}: its tokenizer has no chat template, as of a base model; set {place}.chat_template to a "
            f"file, or to a shipped one: {' or '.join(shipped_templates())}"
        )
    if chat is not None:
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        tokenizer.chat_template = effective_template(own, chat)
        _check(tokenizer, model, chat, place)
    return tokenizer


def effective_template(own: str | None, chat: ChatSettings) -> str:
    """A chat template with settings written into it; those already in `own` hold where `chat` has none.

    `chat.chat_template`, a template's text, replaces `own` with all settings in it. Writing the same settings again
    changes nothing. One of them has a template.
    """
    return _laid_over(own, chat).text()


class _Template(NamedTuple):
    """A chat template, and the settings to write into it."""

    own: str
    arguments: dict[str, Any] = {}
    system: str | None = None

    def text(self) -> str:
        """The template as a tokenizer has it."""
        return self.preamble() + self.own

    def preamble(self) -> str:
        """The settings as assignments, a line each."""
        assignments = [f"{{%- set {name} = {literal(value)} -%}}" for name, value in self.arguments.items()]
        if self.system is not None:
            first = f"[{{'role': 'system', 'content': {literal(self.system)}}}]"
            begun = "messages and messages[0]['role'] in ['system', 'developer']"
            assignments.append(f"{{%- set messages = messages if {begun} else {first} + messages -%}}")
        if not assignments:
            return ""
        if self.own[0].isspace():  # which `-%}` would remove; the newline after `%}` goes: all set trim_blocks
            assignments[-1] = assignments[-1].removesuffix("-%}") + "%}"
        settings = json.dumps({"chat_template_kwargs": self.arguments, "system_prompt": self.system})
        settings = settings.replace("#", "\\u0023")  # a comment would end at it
        return "\n".join([f"{{#- cai: {settings} -#}}", *assignments, ""])


def _laid_over(own: str | None, chat: ChatSettings) -> _Template:
    """See `effective_template`."""
    before = _Template(chat.chat_template) if chat.chat_template is not None else _divided(own or "")
    if not before.own:
        shipped = ", ".join(shipped_templates())
        raise CaiError(
            f"there is no chat template, as of a base model; name one in chat_template: a file, or {shipped}"
        )
    arguments = {**before.arguments, **chat.chat_template_kwargs}
    return _Template(before.own, arguments, chat.system_prompt or before.system)


def _divided(text: str) -> _Template:
    """A template as a tokenizer has it, without the settings that were written into it, and those."""
    match = _MARKED.match(text)
    if match is None:
        return _Template(text)
    try:
        written = ChatSettings.model_validate_json(match[1])
    except ValidationError:
        return _Template(text)
    arguments, system = written.chat_template_kwargs, written.system_prompt
    own = text.split("\n", 1 + len(arguments) + (system is not None))[-1]
    template = _Template(own, arguments, system)
    return template if own and template.text() == text else _Template(text)


def literal(value: Any) -> str:
    """A JSON value as a literal of Jinja that any text stays inside of, on one line.

    Of texts every quote, backslash, bracket of Jinja's and unprintable character is escaped.
    """
    match value:
        case None | bool():
            return str(value).lower()
        case int() | float() if math.isfinite(value):
            return repr(value)
        case str():
            return f'"{"".join(map(_escaped, value))}"'
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case dict():
            return f"{{{', '.join(f'{literal(key)}: {literal(inside)}' for key, inside in value.items())}}}"
    raise CaiError(f"chat_template_kwargs: expected a value of JSON, found {value!r}")


def _escaped(character: str) -> str:
    if character.isprintable() and _PRINTED.match(character):
        return character
    if character == "\n":
        return r"\n"
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _check(tokenizer: Any, model: Path, chat: ChatSettings, place: str) -> None:
    """Raises: CaiError for settings that a tokenizer's template, which holds them, does not take."""
    template = _divided(tokenizer.chat_template)
    for name in chat.chat_template_kwargs:
        if not re.search(rf"\b{name}\b", template.own):
            raise CaiError(f"{place}.chat_template_kwargs: the chat template of {model} has no variable {name!r}")
    rendered = _rendered(tokenizer, template)
    if chat.system_prompt is not None:
        without = _rendered(tokenizer, template._replace(system=None))
        refused = isinstance(rendered, Exception) and not isinstance(without, Exception)
        if refused or rendered == without:
            reason = f": {rendered}" if refused else ""
            raise CaiError(f"{place}.system_prompt: the chat template of {model} takes no system prompt{reason}")
    if isinstance(rendered, Exception):
        raise CaiError(f"{place}: the chat template of {model} cannot be rendered with these settings: {rendered}")
    for name, text in _texts(chat):
        if spelled := ChatTokenizer.of(tokenizer).control_in(text):
            raise CaiError(f"{place}.{name}: holds {spelled!r}, a control token of {model}; a text cannot be one")
    if chat.chat_template is not None and turn_end(tokenizer) is None:
        raise CaiError(
            f"{place}.chat_template: it ends an answer with no special token of {model}, so that no answer would end; "
            "human_assistant ends them with the tokenizer's end token"
        )


def _rendered(tokenizer: Any, template: _Template) -> str | Exception:
    """A question as a chat template writes it, or why it does not."""
    question, settings = [Message(role="user", content="a")], {"add_generation_prompt": True, "tokenize": False}
    try:
        rendered: str = tokenizer.apply_chat_template(question, chat_template=template.text(), **settings)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:  # whatever a template does
        return error
    return rendered


def _texts(chat: ChatSettings) -> Iterator[tuple[str, str]]:
    """The texts that settings write into a conversation, each with its setting."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            for part in value.values() if isinstance(value, dict) else value:
                yield from inside(part)

    if chat.system_prompt is not None:
        yield "system_prompt", chat.system_prompt
    for text in inside(chat.chat_template_kwargs):
        yield "chat_template_kwargs", text
