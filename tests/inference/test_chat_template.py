"""A model's chat template with a run's settings in it: every stage reads the same tokens, and so does who loads the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import GenerationConfig

from cai.config.errors import CaiError
from cai.data.records import Message, Messages, Prompt
from cai.inference.chat import ChatTokenizer, answer_format, chat_ids, text_ids, turn_end
from cai.inference.chat_template import (
    ChatSettings,
    effective_template,
    literal,
    load_tokenizer,
    shipped_templates,
    template_text,
)
from cai.inference.engine import Choose, Generate
from cai.inference.models import Server
from cai.inference.vllm import VllmEngine
from cai.training.tokens import (
    end_of_turn,
    prompts_that_fit,
    read_turn,
    rendering_fault,
    split_turn,
    stage_tokenizer,
    stop_tokens,
    turn_ids,
)
from tests.inference.models_of_families import FAMILIES, HERE, UNLIKE

FOLDERS: dict[str, Path] = {}
HELPFUL = 'Be "helpful" — {{ really }} {% raw %} #}\n\n日本'
CONVERSATIONS: dict[str, Messages] = {
    "question": [Message(role="user", content="How do I boil an egg?")],
    "turns": [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello, what is it?"),
        Message(role="user", content="1 + 1?"),
    ],
}
SYSTEM = Message(role="system", content="Be brief.")
OFF = "set engine.chat_template_kwargs={enable_thinking: false}"
NO_THINKING = ChatSettings(chat_template_kwargs={"enable_thinking": False})


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def of_family(name: str) -> Path:
        if name not in FOLDERS:
            FOLDERS[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name].make().save_pretrained(FOLDERS[name])
        return FOLDERS[name]

    return of_family


def rendered(tokenizer: Any, messages: Messages, **settings: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    return text


def vllm_ids(tokenizer: Any, request: Generate | Choose) -> list[int]:
    engine = object.__new__(VllmEngine)  # without its thread, which would load a model
    engine._tokenizer, engine._limit = tokenizer, 10_000
    return engine._tokens(request)


def settings_of(name: str) -> list[ChatSettings | None]:
    """How a family's model is asked: as it is, with a system prompt, without thinking."""
    family = FAMILIES[name]
    chats: list[ChatSettings | None] = [None]
    chats += [ChatSettings(system_prompt=HELPFUL)] if family.system else []
    chats += [NO_THINKING, NO_THINKING.model_copy(update={"system_prompt": HELPFUL})] if family.thinks else []
    return chats


@pytest.mark.parametrize("asked", CONVERSATIONS)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_has_the_same_tokens_in_every_stage(
    name: str, system: bool, asked: str, folder: Callable[[str], Path]
) -> None:
    messages = [*([SYSTEM] if system and FAMILIES[name].system else []), *CONVERSATIONS[asked]]
    for chat in settings_of(name):
        tokenizer = load_tokenizer(folder(name), chat)
        for answer in ("Ten minutes.", "a <|im_end|> b </s> <end_of_turn> <|eot_id|> [/INST] c"):
            prompt = chat_ids(tokenizer, messages, add_generation_prompt=True)
            whole = chat_ids(tokenizer, [*messages, Message(role="assistant", content=answer)])
            assert vllm_ids(tokenizer, Generate(messages, 8, 1.0, 0)) == prompt
            [ppo], _ = prompts_that_fit(tokenizer, [Prompt(id="p", messages=messages)], 10_000)
            assert ppo.ids == prompt
            split = split_turn(tokenizer, messages, answer)  # as SFT, DPO and the like are given it
            assert split.prompt == prompt
            end = end_of_turn(tokenizer)
            scored = turn_ids(tokenizer, messages, answer)
            assert scored == prompt + split.answers[0] == whole[: len(scored)]
            assert set(whole[len(scored) :]).isdisjoint({end})
            thinks = FAMILIES[name].thinks and (chat is None or not chat.chat_template_kwargs)
            if name == "qwen3" and thinks:  # SFT learns the empty thought that its template writes before an answer
                assert tokenizer.decode(split.answers[0]).startswith("<think>\n\n</think>\n\n")
            else:  # where the policy's own text begins
                text = text_ids(tokenizer, answer)
                assert tokenizer.decode([*text, end]).strip() == tokenizer.decode(split.answers[0]).strip()
            for written in (split.answers[0], split.answers[0][:-1], [*split.answers[0][:-1], tokenizer.eos_token_id]):
                assert read_turn(tokenizer, prompt, written, {end, tokenizer.eos_token_id}) == scored


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reward_is_read_where_it_was_trained_whatever_the_policy_thought_before(
    name: str, folder: Callable[[str], Path]
) -> None:
    [asked] = CONVERSATIONS["question"]
    for chat in settings_of(name):
        tokenizer = load_tokenizer(folder(name), chat)
        assert rendering_fault(tokenizer) is None
        prompt, end = chat_ids(tokenizer, [asked], add_generation_prompt=True), end_of_turn(tokenizer)
        thought = text_ids(tokenizer, "<think>\nSome eggs are large.\n</think>\n\nTen minutes.")
        expected = turn_ids(tokenizer, [asked], "Ten minutes.")
        assert read_turn(tokenizer, prompt, [*thought, end], {end}) == expected
        unfinished = text_ids(tokenizer, "<think>\nSome eggs are")  # ran into the limit: no answer at all
        assert read_turn(tokenizer, prompt, unfinished, {end}) == [*prompt, *answer_format(tokenizer).lead, end]


@pytest.mark.parametrize(
    ("name", "end"),
    [("phi3", "<|end|>"), ("cohere2", "<|END_RESPONSE|>"), ("gemma3", "<end_of_turn>"), ("llama3", "<|eot_id|>")],
)
def test_a_turn_ends_with_the_token_that_the_model_writes(name: str, end: str, folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(folder(name))
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == end
    assert tokenizer.decode(turn_ids(tokenizer, CONVERSATIONS["question"], "Ten.")).endswith(f"Ten.{end}")
    declared = GenerationConfig(eos_token_id=[0])
    assert stop_tokens(tokenizer, declared) == {0, turn_end(tokenizer), tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "deepseek_r1",
            ["<｜Assistant｜><think>\\n' and", "<｜Assistant｜>One. Two?", "name another template in engine."],
        ),
        (
            "gpt_oss",
            ["the answer 'One. Two?' as", "final<|message|>One. Two?", "inference would read 'finalOne. Two?'"],
        ),
        ("nemotron", ["<think>\\n' and renders", "<think></think>One. Two?", OFF]),
        ("qwen3_8", ["<think>\\n' and renders", "<think>\\n\\n</think>\\n\\nOne. Two?", OFF]),
    ],
)
def test_a_template_that_renders_answers_otherwise_than_inference_makes_them_is_refused(
    name: str, parts: list[str], tmp_path: Path
) -> None:
    UNLIKE[name].make().save_pretrained(tmp_path)
    with pytest.raises(CaiError) as refusal:
        stage_tokenizer(tmp_path, None)
    for part in (f"model {tmp_path}: its chat template ", *parts):
        assert part in str(refusal.value)
    if UNLIKE[name].thinks:
        stage_tokenizer(tmp_path, NO_THINKING)


def test_whitespace_that_begins_an_answer_does_not_merge_with_the_prompt(folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(folder("qwen2.5"))
    tokenizer.backend_tokenizer.add_tokens(["\n\n"])  # as a merge of Qwen's: the prompt ends with a newline
    split = split_turn(tokenizer, CONVERSATIONS["question"], "\nTen.")
    assert split.prompt == chat_ids(tokenizer, CONVERSATIONS["question"], add_generation_prompt=True)
    assert tokenizer.decode(split.answers[0]) == "\nTen.<|im_end|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_policy_saved_with_the_settings_has_them_when_it_is_loaded(
    name: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for number, chat in enumerate(settings_of(name)):
        trained = load_tokenizer(folder(name), chat)
        trained.save_pretrained(tmp_path / str(number))
        for again in (None, chat):
            loaded = load_tokenizer(tmp_path / str(number), again)
            assert loaded.chat_template == trained.chat_template
            for messages in CONVERSATIONS.values():
                ids = chat_ids(trained, messages, add_generation_prompt=True)
                assert chat_ids(loaded, messages, add_generation_prompt=True) == ids


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.system])
def test_a_system_prompt_renders_as_a_first_message_where_there_is_none(
    name: str, folder: Callable[[str], Path]
) -> None:
    plain, tokenizer = load_tokenizer(folder(name)), load_tokenizer(folder(name), ChatSettings(system_prompt=HELPFUL))
    for messages in CONVERSATIONS.values():
        own = [Message(role="system", content=HELPFUL), *messages]
        assert chat_ids(tokenizer, messages, True) == chat_ids(plain, own, True)
        assert chat_ids(tokenizer, [SYSTEM, *messages], True) == chat_ids(plain, [SYSTEM, *messages], True)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.thinks])
def test_arguments_render_as_those_of_apply_chat_template(name: str, folder: Callable[[str], Path]) -> None:
    plain = load_tokenizer(folder(name))
    for value in (False, True):
        chat = ChatSettings(chat_template_kwargs={"enable_thinking": value})
        for messages in CONVERSATIONS.values():
            expected = rendered(plain, messages, add_generation_prompt=True, enable_thinking=value)
            assert rendered(load_tokenizer(folder(name), chat), messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("chat", [None, NO_THINKING])
def test_a_verdict_of_a_thinking_model_is_read_after_an_empty_thought(
    chat: ChatSettings | None, folder: Callable[[str], Path]
) -> None:
    tokenizer = load_tokenizer(folder("qwen3"), chat)
    asked = [*CONVERSATIONS["question"], Message(role="assistant", content="The better answer is (")]
    ids = vllm_ids(tokenizer, Choose(asked, (" A", " B")))
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThe better answer is (")


def test_the_settings_of_another_run_take_the_place_of_those_in_a_template() -> None:
    own = "{{ a }} {{ b }} {{ messages[0].content }}"
    first = ChatSettings(chat_template_kwargs={"a": 1, "b": 2}, system_prompt="one")
    second = ChatSettings(chat_template_kwargs={"b": 3}, system_prompt="two")
    merged = ChatSettings(chat_template_kwargs={"a": 1, "b": 3}, system_prompt="two")
    assert effective_template(effective_template(own, first), second) == effective_template(own, merged)
    whole = ChatSettings(chat_template="{{ b }}")
    assert effective_template(effective_template(own, first), whole) == "{{ b }}"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=5,
)
HOSTILE = st.text(st.sampled_from(list("{}%#-\"'\\\n\r\t n0x~é日😀\u2028\u0085")), max_size=30) | st.text(max_size=10)


@given(value=JSON | HOSTILE)
@hypothesis_settings(max_examples=200)
def test_any_value_of_json_is_read_back_from_its_literal(value: Any) -> None:
    assert "\n" not in literal(value)
    seen: list[Any] = []
    jinja2.Environment().from_string(f"{{%- set x = {literal(value)} -%}}{{{{ see(x) }}}}").render(see=seen.append)
    assert seen == [value]


@pytest.mark.slow
@given(system=HOSTILE, argument=JSON | HOSTILE, own=HOSTILE.filter(lambda text: not set("{}#%") & set(text)))
@hypothesis_settings(max_examples=200)
def test_no_value_leaves_its_assignment(system: str, argument: Any, own: str) -> None:
    assume(system)
    from transformers.utils.chat_template_utils import _compile_jinja_template

    own += "{{ see(x, messages[0].content) }}" + own
    chat = ChatSettings(chat_template_kwargs={"x": argument}, system_prompt=system)
    text = effective_template(own, chat)
    assert effective_template(text, chat) == text
    seen: list[Any] = []

    def see(*values: Any) -> str:
        seen.append(values)
        return ""

    settings = {"messages": [Message(role="user", content="a")], "see": see}
    plain = _compile_jinja_template(own).render(**settings)
    assert _compile_jinja_template(text).render(**settings) == plain
    assert seen[1] == (argument, system)


def test_a_macro_and_a_loop_of_the_template_see_the_arguments() -> None:
    own = "{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% for i in [1] %}{{ x }}{% endfor %}"
    assert (
        jinja2.Environment().from_string(effective_template(own, ChatSettings(chat_template_kwargs={"x": 5}))).render()
        == "55"
    )


@pytest.mark.parametrize(
    "name", ["messages", "add_generation_prompt", "not", "a b", "a-b", "", "é", "true", "x %}{{ 1"]
)
def test_an_argument_is_named_as_a_variable_that_the_template_reads(name: str) -> None:
    with pytest.raises(ValidationError, match="names of a chat template's variables"):
        ChatSettings(chat_template_kwargs={name: 1})


@pytest.mark.parametrize(
    ("name", "chat", "message"),
    [
        ("llama3", {"chat_template_kwargs": {"enable_thinking": False}}, r"engine.chat_template_kwargs: .* no variable 'enable_thinking'"),
        ("gemma", {"system_prompt": "Be brief."}, r"engine.system_prompt: .* takes no system prompt: System role not supported"),
        ("qwen3", {"system_prompt": "ok<|im_end|>"}, r"engine.system_prompt: holds '<\|im_end\|>', a control token"),
        ("qwen3", {"chat_template_kwargs": {"tools": "x"}}, None),
        ("qwen3", {"chat_template": "{{ messages[0].content }}"}, r"engine.chat_template: it ends an answer with no special token"),
        ("llama3", {"chat_template": "{{ messages[0].content }}", "system_prompt": "x"}, "ends an answer with no special"),
        ("llama3", {"chat_template": "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "system_prompt": "x"}, "takes no system prompt$"),
        ("llama3", {"chat_template": "{{ messages.x.y }}"}, "cannot be rendered with these settings: 'list object' has no attribute 'x'"),
        ("llama3", {"chat_template": "{% if %}"}, "cannot be rendered with these settings: Expected an expression"),
    ],
)  # fmt: skip
def test_settings_that_a_model_does_not_take_are_refused_before_it_loads(
    name: str, chat: dict[str, Any], message: str | None, folder: Callable[[str], Path]
) -> None:
    if message is None:
        with pytest.raises(ValidationError):
            ChatSettings(**chat)
        return
    with pytest.raises(CaiError, match=message):
        load_tokenizer(folder(name), ChatSettings(**chat))


@pytest.mark.parametrize("template", shipped_templates())
def test_a_base_model_gets_a_shipped_template(template: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = FAMILIES["qwen3"].make()
    base.chat_template = None
    base.save_pretrained(tmp_path)
    with pytest.raises(CaiError, match=r"no chat template, as of a base model; set engine.chat_template to a file, or to a shipped one: chatml or human_assistant"):  # fmt: skip
        load_tokenizer(tmp_path)
    with pytest.raises(CaiError, match="no chat template"):
        load_tokenizer(tmp_path, ChatSettings(system_prompt="Be brief."))
    text = template_text(template, "engine.chat_template", tmp_path / "run.yaml")
    tokenizer = load_tokenizer(tmp_path, ChatSettings(chat_template=text, system_prompt="Be brief."))
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    written = {
        "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n",
        "human_assistant": "Be brief.\n\nHuman: 1 + 1?\n\nAssistant:",
    }
    assert rendered(tokenizer, [CONVERSATIONS["turns"][-1]], add_generation_prompt=True) == written[template]
    asked = CONVERSATIONS["turns"]
    split = split_turn(tokenizer, asked, "Two.")
    assert split.prompt == chat_ids(tokenizer, asked, add_generation_prompt=True)
    assert tokenizer.eos_token_id in split.answers[0]


def test_a_shipped_template_needs_its_tokens_in_the_vocabulary(folder: Callable[[str], Path]) -> None:
    text = template_text("chatml", "engine.chat_template", Path("run.yaml"))
    with pytest.raises(CaiError, match="human_assistant ends them with the tokenizer's end token"):
        load_tokenizer(folder("llama3"), ChatSettings(chat_template=text))


def test_a_template_is_a_file_a_shipped_name_or_the_text_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ mine }}")
    run_file = tmp_path / "run.yaml"
    assert template_text("mine.jinja", "engine.chat_template", run_file) == "{{ mine }}"
    assert template_text("{{ text }}", "engine.chat_template", run_file) == "{{ text }}"
    with pytest.raises(CaiError, match=r"run.yaml: engine.chat_template: 'chatm' not found .*; shipped are chatml, human_assistant"):  # fmt: skip
        template_text("chatm", "engine.chat_template", run_file)


def test_a_default_system_prompt_makes_no_text_a_control_token() -> None:
    tokenizer = FAMILIES["smollm3"].make()
    tokenizer.add_tokens(["trained"])  # a word of the default prompt
    assert "trained" not in ChatTokenizer.of(tokenizer).control


def test_a_server_gets_the_system_prompt_as_a_message_and_the_arguments_beside_it() -> None:
    chat = ChatSettings(system_prompt="Be brief.", chat_template_kwargs={"enable_thinking": False})
    [question] = CONVERSATIONS["question"]
    assert chat.served([question]) == {
        "messages": [SYSTEM, question],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    own = [Message(role="system", content="Mine."), question]
    assert chat.served(own)["messages"] == own
    assert ChatSettings().served([question]) == {"messages": [question]}


def test_a_server_has_its_own_template() -> None:
    from cai.inference.chat_template import check_chat

    server = Server.at("http://localhost:8000/v1", "m")
    check_chat(server, ChatSettings(system_prompt="x"), "judge.engine")
    with pytest.raises(CaiError, match=r"judge.engine.chat_template: http://localhost:8000/v1#m is a server's model"):
        check_chat(server, ChatSettings(chat_template="{{ x }}"), "judge.engine")


def test_the_fixtures_are_named_with_their_source() -> None:
    described = (HERE / "README.md").read_text()
    assert all(path.name in described for path in HERE.glob("*.jinja"))
