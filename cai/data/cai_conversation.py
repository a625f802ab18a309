"""The columns of Hugging Face's Constitutional AI data sets, https://huggingface.co/datasets/HuggingFaceH4/cai-conversation-harmless.

    init_prompt, init_response, critic_prompt, critic_response, revision_prompt, revision_response   texts
    prompt                                    the first of them again
    messages, chosen                          the prompt and the revised answer, as turns
    rejected                                  the prompt and the first answer, as turns

One row is one round; a later round starts from the answer before it. `chosen` and `rejected` are read as preferences,
`messages` as an answer to learn, `init_prompt` as a prompt.
"""

from typing_extensions import TypedDict

from cai.config.errors import CaiError
from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data.files import Place, RowOfFile
from cai.data.forms import Read, row_id, row_tags
from cai.data.records import Message, Messages, Revision
from cai.data.trl_formats import said


class Row(TypedDict):
    """One round of critique and revision."""

    init_prompt: str
    init_response: str
    critic_prompt: str | None
    critic_response: str | None
    revision_prompt: str
    revision_response: str
    prompt: str
    messages: Messages
    chosen: Messages
    rejected: Messages


def read_prompt(place: Place, value: RowOfFile) -> Read:
    """The prompt, a text or (in the first of these data sets) one turn."""
    prompt = value["init_prompt"]
    asked = prompt.get("content") if isinstance(prompt, dict) else prompt
    if not isinstance(asked, str):
        raise CaiError(f"{place}: init_prompt: expected a text, found {str(prompt)[:60]}")
    messages: Messages = [Message(role="user", content=asked)]
    return [{"prompt_id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}]


def row(revision: Revision, constitution: Constitution, templates: Templates) -> list[Row] | str:
    """A round of a run, with the requests as the model got them; or why its revision is not fit to be learnt.

    The texts hold the last user's turn alone; what was said before it is in `messages`, `chosen` and `rejected`.
    """
    if revision.flags:
        return f"revision {revision.flags[0].replace('_', ' ')}"
    [principle] = [p for p in constitution.principles if p.id == revision.principle_id]
    request = revision.messages[-1]["content"]
    criticised = revision.critique is not None
    conversation = [*revision.messages, *said(revision.revision)]
    return [
        Row(
            init_prompt=request,
            init_response=revision.before,
            critic_prompt=templates.critique(principle, revision.round, request) if criticised else None,
            critic_response=revision.critique,
            revision_prompt=templates.revise(principle, revision.round, request, revision.critique),
            revision_response=revision.revision,
            prompt=request,
            messages=conversation,
            chosen=conversation,
            rejected=[*revision.messages, *said(revision.before)],
        )
    ]
