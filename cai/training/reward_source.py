"""What rewards the answers of an online stage: reward models of cai or of others, the run's judge, rules, or a sum."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Messages, Prompt
from cai.stats.formatting import counted
from cai.training import distributed
from cai.training.reward_folder import is_trained_here
from cai.training.setting_parts import RewardPart, parts_of
from cai.training.stage import Ask, JudgedAnswer, StageSpec
from cai.training.tokens import PromptIds, answer_text, read_turn

if TYPE_CHECKING:
    from torch import Tensor

PATTERN_SECONDS = 1.0  # of a search in one answer; without nested repetitions it takes microseconds


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
    fsdp: bool = False
    """Whether the weights of a reward model that cai trained are sharded."""


class RewardSource(Protocol):
    """Scores the answers that a policy samples. `load` comes before `scores`."""

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """The prompts whose answers it cannot score, each with the reason."""

    def load(self, loading: Loading) -> None:
        """Make ready to score."""

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Of shape (answers, members), any real unit."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the answers scored since the last call, beside their scores."""


def reward_source(spec: StageSpec[Any], tokenizer: Any, ask: Ask) -> RewardSource:
    """What rewards the answers of a stage, whose policy has this tokenizer.

    Raises: CaiError where a reward model that cai trained reads another vocabulary.
    """
    folders = iter([spec.reward, *spec.other_rewards])

    def source(part: RewardPart) -> RewardSource:
        if part.judge:
            return JudgeReward(tokenizer, ask)
        if part.length_penalty is not None:
            return LengthPenalty(part.length_penalty)
        if part.pattern is not None:
            return PatternReward(part.pattern, tokenizer)
        folder = next(folders)
        assert folder is not None, "a model that rewards has its folder"
        if is_trained_here(folder):
            return TrainedReward(folder, tokenizer, spec.model)
        return ExternalReward(folder, tokenizer)

    settings, parts = spec.settings, parts_of(spec.settings.reward)
    sources = [source(part) for part in parts]
    return RewardSum(parts, sources, settings.uncertainty) if isinstance(settings.reward, list) else sources[0]


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
        self._model = RewardModel(self._folder, loading.share(self._folder), loading.device, loading.fsdp)

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Read at the end of the turn."""
        return self._model.scores([read_turn(self._tokenizer, a.prompt.ids, a.written, self._ends) for a in answers])

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


class ExternalReward:
    """A reward model of others: it reads the conversation and the answer's text by its own tokenizer and template."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        """`tokenizer` is the policy's."""
        from cai.training.reward_model import ExternalTokenizer

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
        from cai.training.reward_model import ExternalRewardModel

        self._ends, self._model = loading.ends, ExternalRewardModel(self._folder, loading.device)

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Of the texts that inference would return. Raises: CaiError for one that the reward model cannot read."""
        try:
            sequences = [self._read(answer) for answer in answers]
        except RequestRefused as refusal:
            raise CaiError(f"the reward model {self._folder} cannot score an answer: {refusal}") from refusal
        return self._model.scores(sequences)

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def _read(self, answer: SampledAnswer) -> list[int]:
        ids = self._own.ids(answer.prompt.row.messages, answer_text(self._policy, answer.written, self._ends))
        self._model.check_length(ids)
        return ids


class JudgeReward:
    """The run's judge, in the process that drives the training: it rates the texts that inference would return.

    Of several processes the first asks for all, and has the metrics. An answer that the judge refuses gets the mean of
    the others', so that it teaches nothing, and is counted.
    """

    def __init__(self, tokenizer: Any, ask: Ask) -> None:
        """`tokenizer` is the policy's."""
        self._tokenizer, self._ask = tokenizer, ask
        self._judged: list[JudgedAnswer] = []

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """The prompts to which no principle applies."""
        distributed.join()
        ids = [prompt.id for prompt in prompts]
        refused: dict[str, str] = distributed.from_first(lambda: self._ask({"prompts": ids})["refused"])
        return refused

    def load(self, loading: Loading) -> None:
        """Nothing but what ends an answer: the judge is not in this process."""
        self._ends = loading.ends

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """From −1 to 1, shape (answers, 1). Raises: CaiError where the judge refuses all of them."""
        import torch

        texts = [(a.prompt.row.id, answer_text(self._tokenizer, a.written, self._ends)) for a in answers]
        return torch.tensor(distributed.answered_by_first(texts, self._rewards)).reshape(-1, 1)

    def _rewards(self, texts: list[tuple[str, str]]) -> list[float]:
        replies = [JudgedAnswer(**fields) for fields in self._ask({"answers": texts})["judged"]]
        self._judged += replies
        known = [answer.score for answer in replies if answer.score is not None]
        if not known:
            raise CaiError(f"the judge refuses all of {counted(len(replies), 'answers')}: {replies[0].reason}")
        mean = sum(known) / len(known)
        return [mean if answer.score is None else answer.score for answer in replies]

    def metrics(self) -> dict[str, float]:
        """Mean ratings, of all principles and of each, the spread of the rewards, non-option mass, refused answers."""
        replies, self._judged = self._judged, []
        rated = [answer for answer in replies if answer.score is not None]
        if not rated:
            return {}
        by_principle: dict[str, list[float]] = {}
        for answer in rated:
            for principle, rating in answer.ratings.items():
                by_principle.setdefault(principle, []).append(rating)
        return {
            "judge/rating": fmean(rating for ratings in by_principle.values() for rating in ratings),
            "judge/reward_std": pstdev(answer.score for answer in rated if answer.score is not None),
            "judge/non_option_mass": fmean(answer.non_option_mass for answer in rated),
            "judge/refused": float(len(replies) - len(rated)),
            **{f"judge/rating/{name}": fmean(ratings) for name, ratings in sorted(by_principle.items())},
        }


class LengthPenalty:
    """Takes off as much for each token of an answer, its end included."""

    def __init__(self, each: float) -> None:
        self._each = each

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """None."""
        return {}

    def load(self, loading: Loading) -> None:
        """Nothing to load."""

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """At most 0."""
        import torch

        return torch.tensor([-self._each * len(answer.written) for answer in answers]).reshape(-1, 1)

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


class PatternReward:
    """A rule: whether a regular expression is found in an answer's text."""

    def __init__(self, pattern: str, tokenizer: Any) -> None:
        """`tokenizer` is the policy's."""
        import regex

        self._pattern, self._tokenizer = regex.compile(pattern), tokenizer

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """None."""
        return {}

    def load(self, loading: Loading) -> None:
        """Nothing but what ends an answer."""
        self._ends = loading.ends

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """1 or 0. Raises: CaiError where a search takes longer than PATTERN_SECONDS."""
        import torch

        return torch.tensor([float(self._found(answer)) for answer in answers]).reshape(-1, 1)

    def _found(self, answer: SampledAnswer) -> bool:
        text = answer_text(self._tokenizer, answer.written, self._ends)
        try:
            return self._pattern.search(text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError as error:
            raise CaiError(
                f"reward: the pattern '{self._pattern.pattern}' searched {counted(len(text), 'characters')} "
                f"for {PATTERN_SECONDS:g} s without an end; expected one with fewer nested repetitions"
            ) from error

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


class RewardSum:
    """A weighted sum of several sources, each logged by itself."""

    def __init__(self, parts: Sequence[RewardPart], sources: Sequence[RewardSource], uncertainty: float) -> None:
        """`uncertainty` is taken off the scores of each ensemble, as where it is the only source."""
        self._parts, self._sources, self._uncertainty = parts, sources, uncertainty
        self._names = _part_names(parts)
        self._seen: dict[str, list[float]] = {}

    def unrewarded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """The prompts that one of the sources cannot score."""
        refused: dict[str, str] = {}
        for source in self._sources:
            refused = {**source.unrewarded(prompts), **refused}
        return refused

    def load(self, loading: Loading) -> None:
        """Load every source; one reward model may share the policy's weights, since adapters have the same names."""
        alone, shared = loading._replace(share=lambda folder: None), False
        for source in self._sources:
            first = isinstance(source, TrainedReward) and not shared
            shared |= first
            source.load(loading if first else alone)

    def scores(self, answers: Sequence[SampledAnswer]) -> "Tensor":
        """Σ weight · score, shape (answers, 1)."""
        import torch

        from cai.training.reward_model import combined

        total = torch.zeros(len(answers))
        for name, part, source in zip(self._names, self._parts, self._sources, strict=True):
            scores = combined(source.scores(answers), self._uncertainty)
            total += part.weight * scores
            self._seen.setdefault(name, []).extend(distributed.gather(scores.tolist()))
        return total.reshape(-1, 1)

    def metrics(self) -> dict[str, float]:
        """Each source's mean score before its weight, and its own metrics."""
        seen, self._seen = self._seen, {}
        own = {name: fmean(scores) for name, scores in seen.items() if scores}
        return {key: value for source in self._sources for key, value in source.metrics().items()} | own


def _part_names(parts: Sequence[RewardPart]) -> list[str]:
    """`reward/model`, `reward/model-2`, `reward/judge`, `reward/length_penalty`, `reward/pattern`."""
    names: list[str] = []
    for place, part in enumerate(parts):
        number = sum(other.kind == part.kind for other in parts[: place + 1])
        names.append(f"reward/{part.kind}" if number == 1 else f"reward/{part.kind}-{number}")
    return names


def by_conversation(prompts: Sequence[PromptIds]) -> Callable[[Messages], PromptIds]:
    """The prompt with a conversation; of several the first."""
    known: dict[tuple[tuple[str, str], ...], PromptIds] = {}
    for prompt in prompts:
        known.setdefault(_turns(prompt.row.messages), prompt)
    return lambda messages: known[_turns(messages)]


def _turns(messages: Messages) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)
