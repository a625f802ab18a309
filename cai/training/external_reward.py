"""A reward model that others trained: a sequence classifier with one label. Imports torch: import this lazily.

It reads a conversation by its own tokenizer and chat template, whole, as transformers renders it; none of the policy's
tokens reach it. It computes in the precision in which its weights are saved.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message, Messages
from cai.inference.chat import ControlTokenRefused, chat_ids, escape_control
from cai.inference.chat_template import load_tokenizer
from cai.inference.models import loading_options
from cai.training.reward_model import right_padded

BATCH = 16  # conversations in a forward pass


class ExternalTokenizer:
    """How an external reward model reads a conversation; light beside its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokenizer = load_tokenizer(folder)
        self.longest = int(self._tokenizer.model_max_length)  # a number beyond any text where it has no limit

    def ids(self, messages: Messages, text: str) -> list[int]:
        """The answered conversation, a control token that a text spells as text or escaped.

        Raises: RequestRefused where the chat template refuses the conversation.
        """
        whole = [*messages, Message(role="assistant", content=text)]
        try:
            return chat_ids(self._tokenizer, whole)
        except ControlTokenRefused:
            return chat_ids(self._tokenizer, escape_control(whole))

    def length(self, text: str) -> int:
        """Tokens of an answer by itself."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))


class ExternalRewardModel:
    """An external reward model in memory."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Raises: CaiError for a model that lacks weights, which would be random."""
        from transformers import AutoModelForSequenceClassification

        self.tokenizer = ExternalTokenizer(folder)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto", output_loading_info=True, **loading_options(folder)
        )
        if missing := sorted(loaded["missing_keys"]):
            raise CaiError(f"the reward model {folder} lacks weights: {', '.join(missing[:3])}; they would be random")
        self._model, self._device = model.to(device).eval(), device
        self._pad: int | None = model.config.get_text_config().pad_token_id
        places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._longest = min(self.tokenizer.longest, places or self.tokenizer.longest)

    def check_length(self, ids: Sequence[int]) -> None:
        """Raises: RequestRefused for a conversation longer than the model reads."""
        if len(ids) > self._longest:
            raise RequestRefused(
                f"the reward model reads at most {self._longest} tokens, and the conversation has {len(ids)}",
                retryable=False,
            )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def scores(self, sequences: Sequence[list[int]]) -> Tensor:
        """The reward of each conversation of `ids`, shape (sequences, 1), any real unit.

        Without a padding token the classifiers of decoders read one conversation at a time.
        """
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        result, size = torch.empty(len(sequences), 1), 1 if self._pad is None else BATCH
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            ids, mask = (t.to(self._device) for t in right_padded([sequences[i] for i in rows], self._pad or 0))
            result[rows] = self._model(input_ids=ids, attention_mask=mask).logits.float().cpu()
        return result
