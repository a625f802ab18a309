"""What rewards the answers of an online stage: a reward model that cai trained, or an external one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Messages, Prompt
from cai.training.reward_folder import is_trained_here
from cai.training.stage import StageSpec
from cai.training.tokens import PromptIds, answer_text, read_turn

if TYPE_CHECKING:
    from torch import Tensor


class SampledAnswer(NamedTuple):
    """What a policy wrote, as token ids, up to its end or the limit, to a prompt."""

    prompt: PromptIds
    written: list[int]


class Loading(NamedTuple):
    """What a stage knows once its policy is loaded."""

    ends: set[int]
    """The tokens that end an answer."""
    device: str
    share: Callable[[Path], Any] = lambda folder: None
    """The loaded PeftModel on which the adapters of a reward model fit; None where they do not."""


class RewardSource(Protocol):
    """Scores the answers that a policy samples. `load` comes before `scores`."""

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """The prompts whose answers it cannot score, each with the reason."""

    def load(self, loading: Loading) -> None:
        """Make ready to score."""

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Of shape (answers, members), any real unit."""


def reward_source(spec: StageSpec[Any], tokenizer: Any) -> RewardSource:
    """What rewards the answers of a stage, whose policy has this tokenizer.

    Raises: CaiError where a reward model that cai trained reads another vocabulary.
    """
    assert spec.reward is not None, "an online stage has a reward model"
    if is_trained_here(spec.reward):
        return TrainedReward(spec.reward, tokenizer, spec.model)
    return ExternalReward(spec.reward, tokenizer)


class TrainedReward:
    """A reward model or ensemble that cai trained: it scores the very tokens that the policy sampled."""

    def __init__(self, folder: Path, tokenizer: Any, model: Path) -> None:
        """Raises: CaiError when it reads another vocabulary than that of `model`, whose tokenizer is passed."""
        from cai.training.reward_model import check_vocabulary

        self._folder, self._tokenizer = folder, tokenizer
        check_vocabulary(folder, tokenizer, model)

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """None: what the policy reads, it reads."""
        return {}

    def load(self, loading: Loading) -> None:
        """Load the weights that the policy does not have already."""
        from cai.training.reward_model import RewardModel

        self._ends = loading.ends
        self._model = RewardModel(self._folder, on=loading.share(self._folder), device=loading.device)

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Read at the end of the turn."""
        return self._model.scores([read_turn(self._tokenizer, a.prompt.ids, a.written, self._ends) for a in answers])


class ExternalReward:
    """A reward model of others: it reads the conversation and the answer's text by its own tokenizer and template."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        """`tokenizer` is the policy's."""
        from cai.training.external_reward import ExternalTokenizer

        self._folder, self._policy = folder, tokenizer
        self._own = ExternalTokenizer(folder)

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompts that its chat template refuses, such as those with a system message."""
        refused = {}
        for prompt in prompts:
            try:
                self._own.ids(prompt.messages, "a")
            except RequestRefused as refusal:
                refused[prompt.id] = f"the reward model cannot read it: {refusal}"
        return refused

    def load(self, loading: Loading) -> None:
        """Load the weights."""
        from cai.training.external_reward import ExternalRewardModel

        self._ends, self._model = loading.ends, ExternalRewardModel(self._folder, loading.device)

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Of the texts that inference would return. Raises: CaiError for one that the reward model cannot read."""
        try:
            sequences = [self._read(answer) for answer in answers]
        except RequestRefused as refusal:
            raise CaiError(f"the reward model {self._folder} cannot score an answer: {refusal}") from refusal
        return self._model.scores(sequences)

    def _read(self, answer: SampledAnswer) -> list[int]:
        ids = self._own.ids(answer.prompt.row.messages, answer_text(self._policy, answer.written, self._ends))
        self._model.check_length(ids)
        return ids


def by_conversation(prompts: Sequence[PromptIds]) -> Callable[[Messages], PromptIds]:
    """The prompt with a conversation; of several the first."""
    known: dict[tuple[tuple[str, str], ...], PromptIds] = {}
    for prompt in prompts:
        known.setdefault(_turns(prompt.row.messages), prompt)
    return lambda messages: known[_turns(messages)]


def _turns(messages: Messages) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)
