"""Columns of https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized.

    prompt, prompt_id                  the last user's turn, as a text
    chosen, rejected                   whole conversations
    messages                           the same as chosen
    score_chosen, score_rejected       there a judge's marks from 1 to 10; written by us the probabilities p and 1 − p

They are read by cai/data/preferences.py, where equal scores are no preference, and others are a sure one: a
row does not tell whether its scores are probabilities or marks.
"""

from typing_extensions import TypedDict

from cai.data.records import Messages, Preference
from cai.data.trl_formats import said


class Row(TypedDict):
    """One pair."""

    prompt: str
    prompt_id: str
    chosen: Messages
    rejected: Messages
    messages: Messages
    score_chosen: float
    score_rejected: float


def row(pair: Preference) -> list[Row]:
    """A pair; its likelier answer as `chosen`."""
    (chosen, rejected), p = (
        ((pair.chosen, pair.rejected), pair.p) if pair.p >= 0.5 else ((pair.rejected, pair.chosen), 1 - pair.p)
    )
    conversation = [*pair.messages, *said(chosen)]
    return [
        Row(
            prompt=pair.messages[-1]["content"],
            prompt_id=pair.prompt_id,
            chosen=conversation,
            rejected=[*pair.messages, *said(rejected)],
            messages=conversation,
            score_chosen=p,
            score_rejected=1 - p,
        )
    ]
