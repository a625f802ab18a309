"""Reward models, ours and external ones: their folders, and the scores they give. Imports torch: import this lazily.

A folder of ours holds `reward.json`, `base` (a link to the model that it was trained from, or a copy), and `member-1/`
… `member-k/`: a LoRA with a score head each, in peft's own format; a member trained without LoRA is a whole model
folder, without a base.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cai.config.errors import CaiError, RequestRefused
from cai.data.manifest import brief
from cai.data.records import Message, Messages
from cai.inference.chat import ControlTokenRefused, chat_ids, escape_control
from cai.inference.chat_template import load_tokenizer
from cai.inference.models import folder_fingerprint, loading_options
from cai.training import distributed, sharding
from cai.training.reward_folder import find_base
from cai.training.tokens import vocabulary_fingerprint

HEAD = "score.weight"


class Member(NamedTuple):
    """One reward function: the adapter it reads the trunk through (None: the trunk as it is) and its linear head."""

    adapter: str | None
    head: Tensor  # (hidden,)


class SavedMember(NamedTuple):
    """A member of a reward model with a base, as its folder has it."""

    folder: Path
    head: Tensor  # (hidden,)
    weights: dict[str, Tensor]

    def lora(self, **options: Any) -> Any:
        """A config of peft for an adapter that its weights fit."""
        from peft import LoraConfig

        saved = LoraConfig.from_pretrained(self.folder)
        return LoraConfig(r=saved.r, lora_alpha=saved.lora_alpha, target_modules=saved.target_modules, **options)

    def load_into(self, model: Any, adapter: str) -> None:
        """Load its LoRA as an adapter of a PeftModel. Raises: CaiError for weights that the model has no place for."""
        from peft import set_peft_model_state_dict

        lora = {key: value for key, value in self.weights.items() if "lora_" in key}
        if unexpected := set_peft_model_state_dict(model, lora, adapter_name=adapter).unexpected_keys:
            raise CaiError(f"{self.folder}: weights that the base has no place for: {unexpected[0]}")


def read_member(folder: Path) -> SavedMember:
    """Read the adapter and the head of a member."""
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    head = next(value for key, value in weights.items() if key.endswith(HEAD))
    return SavedMember(folder, head[0], weights)


class RewardModel:
    """k reward functions over one copy of the weights; scores are read at the last token of a turn.

    Raises: CaiError when `folder` holds no reward model.
    """

    def __init__(self, folder: Path, on: Any = None, device: str = "cpu", fsdp: bool = False) -> None:
        """Load `folder`; its adapters go into `on`, a PeftModel over the same base, in place of a copy of the base.

        With `fsdp` its weights are sharded, unless they are those of `on`, and all processes call `scores` together.
        """
        where = "cpu" if fsdp else device
        from peft import get_peft_model

        about = read_about(folder)
        self.members: list[Member] = []
        if not about["base"]:
            self._model = classifier(folder / about["members"][0]).to(where)
            self.members.append(Member(None, self._model.score.weight[0].detach().to(device)))
        else:
            self._model = on
            for name in about["members"]:
                saved = read_member(folder / name)
                adapter = f"reward-{name}"
                if self._model is None:
                    trunk = classifier(find_base(folder, about["base"])).to(where)
                    self._model = get_peft_model(trunk, saved.lora(inference_mode=True), adapter_name=adapter)
                else:
                    self._model.add_adapter(adapter, saved.lora(inference_mode=True))
                saved.load_into(self._model, adapter)
                self.members.append(Member(adapter, saved.head.to(device)))
        self._device, self._fsdp = device, fsdp
        if fsdp and on is None:
            sharding.shard(sharding.trunk_of(self._plain()))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def scores(self, sequences: list[list[int]], batch_size: int = 16) -> Tensor:
        """The reward of each whole conversation by each member, shape (sequences, members), any real unit.

        `sequences` end with the token that ends a turn. Long and short ones are batched apart.
        """
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        result = torch.empty(len(sequences), len(self.members))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        for member_index, member in enumerate(self.members):
            with self._through(member.adapter) as trunk:
                for rows, counts in distributed.joint(batches, [0], self._fsdp):
                    ids, mask = (t.to(self._device) for t in right_padded([sequences[i] for i in rows], 0))
                    with distributed.autocast():
                        hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                    if not counts:
                        continue
                    last = hidden[torch.arange(len(rows)), mask.sum(dim=1) - 1]
                    result[rows, member_index] = (last.float() @ member.head.float()).cpu()
        return result

    def _plain(self) -> Any:
        """transformers' model, without peft's around it."""
        return self._model if self.members[0].adapter is None else self._model.get_base_model()

    @contextlib.contextmanager
    def _through(self, adapter: str | None) -> Iterator[Any]:
        if adapter is None:
            yield self._model.base_model
            return
        before = self._model.active_adapter
        self._model.set_adapter(adapter, inference_mode=True)
        try:
            yield sharding.trunk_of(self._plain())
        finally:
            self._model.set_adapter(before, inference_mode=before.startswith("reward-"))


def register_classifier(folder: Path) -> None:
    """Let transformers load the model in `folder` as a sequence classifier where its family has none of its own.

    Granite, Cohere and Gemma 4 have none. It is made as those of other families are: the family's model with a linear
    `score` on its last hidden states.
    """
    from transformers import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
        AutoConfig,
        AutoModelForSequenceClassification,
        PreTrainedModel,
    )
    from transformers.modeling_layers import GenericForSequenceClassification

    config = type(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if config in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return
    trunk = MODEL_MAPPING[config]
    family = next(kind for kind in trunk.__mro__ if PreTrainedModel in kind.__bases__)
    name = trunk.__name__.removesuffix("Model") + "ForSequenceClassification"
    kind = type(name, (GenericForSequenceClassification, family), {"config_class": config})
    AutoModelForSequenceClassification.register(config, kind, exist_ok=True)  # or it is skipped: the config is theirs


def classifier(folder: Path) -> Any:
    """The model in `folder` with a head of one label, in float32."""
    from transformers import AutoModelForSequenceClassification

    register_classifier(folder)
    options = loading_options(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32, **options)


def combined(scores: Tensor, uncertainty: float) -> Tensor:
    """mean − λ·std over the members, shape (n,): the pessimism of Coste et al. 2024 (arXiv:2310.02743 §3).

    Args: scores of shape (n, members); the standard deviation is the population's, 0 for one member.
    """
    return scores.mean(dim=1) - uncertainty * scores.std(dim=1, correction=0)


def read_about(folder: Path) -> dict[str, Any]:
    """reward.json: `members` (folder names), `base` (a fingerprint, or null) and `vocabulary` (a fingerprint)."""
    try:
        about: dict[str, Any] = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CaiError(f"{folder} is not a reward model: no readable reward.json (`stage: reward` writes it)") from None
    for name in about["members"]:  # elsewhere, its weights would not count for the fingerprint
        if not (isinstance(name, str) and Path(name).name == name) or (folder / name).is_symlink():
            raise CaiError(f"{folder / 'reward.json'}: members: expected folders beside it, found {brief(name)}")
    return about


def check_vocabulary(folder: Path, tokenizer: Any, model: Path) -> None:
    """Raises: CaiError when the vocabulary of the reward model is not that of `model`, whose tokenizer is passed."""
    if read_about(folder)["vocabulary"] != vocabulary_fingerprint(tokenizer):
        raise CaiError(f"the reward model {folder} reads other tokens than {model} writes: train it from that model")


def shares_weights(folder: Path, model: Path) -> bool:
    """Whether a reward model's adapters fit on `model` itself, since it was trained from the same weights."""
    return bool(read_about(folder)["base"] == folder_fingerprint(model))


def right_padded(sequences: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), both of shape (sequences, longest), padded at the right."""
    longest = max(len(ids) for ids in sequences)
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return ids, mask


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
    """An external reward model in memory: a sequence classifier with one label.

    It reads a conversation by its own tokenizer and chat template, whole, as transformers renders it; none of the
    policy's tokens reach it. It computes in the precision in which its weights are saved.
    """

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
