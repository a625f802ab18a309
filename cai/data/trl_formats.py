"""Rows as trl's trainers take them, https://huggingface.co/docs/trl/dataset_formats, always as turns.

    trl-preference      {"prompt", "chosen", "rejected"}
    trl-implicit        {"chosen", "rejected"}, whole conversations
    kto                 {"prompt", "completion", "label"}, two rows a pair
    prompt-completion   {"prompt", "completion"}

They are read by cai/data/preferences.py and cai/data/completions.py.
"""

from typing_extensions import TypedDict

from cai.data.records import Demonstration, Message, Messages, Preference


class PreferenceRow(TypedDict):
    """An explicit preference."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


class ImplicitRow(TypedDict):
    """A preference whose prompt is what both conversations share."""

    chosen: Messages
    rejected: Messages


class CompletionRow(TypedDict):
    """A prompt and an answer to learn."""

    prompt: Messages
    completion: Messages


class UnpairedRow(CompletionRow):
    """An answer that is good or bad."""

    label: bool


def preference(pair: Preference) -> list[PreferenceRow]:
    """A pair, its better answer as `chosen`."""
    return [PreferenceRow(prompt=pair.messages, chosen=said(pair.chosen), rejected=said(pair.rejected))]


def implicit(pair: Preference) -> list[ImplicitRow]:
    """A pair as two conversations."""
    chosen, rejected = ([*pair.messages, *said(answer)] for answer in (pair.chosen, pair.rejected))
    return [ImplicitRow(chosen=chosen, rejected=rejected)]


def unpaired(pair: Preference) -> list[UnpairedRow]:
    """A pair as its good answer and then its bad one."""
    answers = ((pair.chosen, True), (pair.rejected, False))
    return [UnpairedRow(prompt=pair.messages, completion=said(text), label=good) for text, good in answers]


def prompt_completion(answer: Demonstration) -> list[CompletionRow]:
    """An answer to learn."""
    return [CompletionRow(prompt=answer.messages, completion=said(answer.completion))]


def said(text: str) -> Messages:
    """An answer as the one turn it is."""
    return [Message(role="assistant", content=text)]
