"""The rows that flow through a run, one JSON object a line in its files."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticKnownError
from typing_extensions import TypedDict

from cai.config.errors import RequestRefused
from cai.stats.logistic import logit, sigmoid

Role = Literal["system", "user", "assistant"]


def _reject_bool(value: object) -> object:
    if isinstance(value, bool):  # which pydantic takes for 1 or 0
        raise PydanticKnownError("float_type")
    return value


Probability = Annotated[float, Field(ge=0, le=1), BeforeValidator(_reject_bool)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_reject_bool)]


def _is_none(value: object) -> bool:
    return value is None


_NOT_WRITTEN_EMPTY = Field(exclude_if=lambda value: not value)
_NULL_IS_FALSE = BeforeValidator(lambda value: False if value is None else value)  # as tables have it where other
_NULL_IS_EMPTY = BeforeValidator(lambda value: [] if value is None else value)  # rows have such a field


# What a model that thinks thought before a text. Rows of other models have no such field, and nothing that judges,
# filters, measures or trains reads it.
Reasoning = Annotated[str | None, Field(exclude_if=_is_none)]


MAX_SEED = 2**32 - 1  # of numpy's global generator, which trl and transformers seed
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


Messages = list[Message]


class Row(BaseModel):
    """Base of every row: immutable, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompt(Row):
    """A conversation to answer: its last turn is the user's."""

    id: str
    messages: Messages
    tags: list[str] = []


class Demonstration(Row):
    """A prompt with a completion to learn; named as in InstructGPT (arXiv:2203.02155)."""

    prompt_id: str
    messages: Messages
    tags: list[str] = []
    completion: str
    truncated: Annotated[bool, _NULL_IS_FALSE, _NOT_WRITTEN_EMPTY] = False  # reached max_tokens, where that is known


class Applicability(Row):
    """A model's answer to a question under a principle's `applies_to`, about a prompt; of several principles once."""

    prompt_id: str
    question: str
    p: Probability  # P(Yes) against No
    non_option_mass: Probability  # probability mass outside both
    model: str  # engine fingerprint


class Revision(Row):
    """One round of the critique–revise loop, with its provenance."""

    prompt_id: str
    messages: Messages
    tags: list[str]
    round: int  # from 1
    draft: str  # the answer before round 1
    before: str  # the answer this round started from
    principle_id: str
    principle_hash: str
    critique: str | None  # None when the run revises directly
    revision: str
    truncated: list[Literal["draft", "critique", "revision"]]  # texts that reached max_tokens
    flags: list[str]  # failed filters, see cai/data/filters.py
    model: str  # engine fingerprint
    reviser: str | None = None  # engine fingerprint, where another model than the draft's criticised and revised
    templates: str  # fingerprint
    seed: int
    # P(the critique points out a problem), where a run revises only then; below its threshold the answer stays
    problem: Probability | None = Field(default=None, exclude_if=_is_none)
    stays: bool | None = Field(default=None, exclude_if=_is_none)
    draft_reasoning: Reasoning = None
    critique_reasoning: Reasoning = None
    revision_reasoning: Reasoning = None


def flips(forward: float, reverse: float) -> bool:
    """Whether a verdict flips when the order is swapped, the same position winning in both: P(first better) of each."""
    return (forward > 0.5) != (reverse > 0.5)


class Verdict(Row):
    """A judge's verdict on a pair by one principle: P(first better), in both orders or, without swap, in one."""

    principle_id: str
    principle_hash: str
    weight: Weight = 1.0  # of this verdict in the label
    judge: str = ""  # engine fingerprint, in a panel of several judges
    p_forward: Probability | None  # the first response shown before the second; None for an order not judged
    p_reverse: Probability | None  # the first response shown after the second; None for an order not judged
    share_forward: Probability = 0.5  # weight of p_forward in the log-odds of p
    non_option_mass: Probability  # mean probability mass outside the options
    # P(the principle tells the answers apart), where that is asked first: part of `weight`, or the reason of no vote
    at_issue: Probability | None = Field(default=None, exclude_if=_is_none)
    # mean probability of a tie where that is an option; half of it is in each order's p of either answer
    tie_mass: Probability | None = Field(default=None, exclude_if=_is_none)
    cot: list[str] = []  # the judge's chains of thought, in each order
    cot_reasoning: Annotated[list[str] | None, Field(exclude_if=_is_none)] = None  # before each, "" where there is none

    @property
    def votes(self) -> bool:
        """Whether it counts in a label; without a vote there is a probability in neither order."""
        return self.p_forward is not None or self.p_reverse is not None

    @property
    def p(self) -> float:
        """The orders averaged in log-odds, which cancels a constant position bias."""
        return self.clamped(0.0, 1.0)

    def clamped(self, low: float, high: float) -> float:
        """As `p`, with each order within [low, high]: two sure verdicts that contradict each other come to 0.5."""
        sides = ((self.p_forward, self.share_forward), (self.p_reverse, 1 - self.share_forward))
        return sigmoid(sum(share * logit(min(max(p, low), high)) for p, share in sides if p is not None))

    def swapped(self) -> Self:
        """The same verdict on the pair in reverse: P(second better) in each order."""
        return self.model_copy(
            update={
                "p_forward": None if self.p_reverse is None else 1.0 - self.p_reverse,
                "p_reverse": None if self.p_forward is None else 1.0 - self.p_forward,
                "share_forward": 1.0 - self.share_forward,
            }
        )

    @property
    def position_bias(self) -> bool | None:
        """Whether the verdict flips when the order is swapped; None where only one order was judged."""
        if self.p_forward is None or self.p_reverse is None:
            return None
        return flips(self.p_forward, self.p_reverse)


Source = Literal["revision", "judge", "human"]
"""Where a pair comes from: a revision and its draft, samples that a judge labelled, or a file of labelled pairs."""


class Preference(Row):
    """A labelled pair. `p` is P(chosen better), soft from judge to loss."""

    prompt_id: str
    messages: Messages
    tags: list[str] = []
    chosen: str
    rejected: str
    p: Probability
    weight: Weight = 1.0  # of this pair in the loss, relative to others
    source: Source
    # a row of the run's `preferences:`, which nothing of the run labelled; its own rows have no such field
    from_file: Annotated[bool, _NULL_IS_FALSE, _NOT_WRITTEN_EMPTY] = False
    # of a revision pair whose judge prefers the draft, which is `chosen`; rows of other pairs have no such field
    draft_chosen: Annotated[bool, _NULL_IS_FALSE, _NOT_WRITTEN_EMPTY] = False
    # answers that reached max_tokens, where that is known; rows without any have no such field
    truncated: Annotated[list[Literal["chosen", "rejected"]], _NULL_IS_EMPTY, _NOT_WRITTEN_EMPTY] = []
    verdicts: list[Verdict] = []  # of the judge; p_forward and p_reverse are P(chosen better)
    # principles without a vote, see `judge.verify`; rows without any have no such field
    abstentions: Annotated[list[Verdict], _NULL_IS_EMPTY, _NOT_WRITTEN_EMPTY] = []
    principle_ids: list[str] = []  # of the revision's rounds, in order
    model: str = ""  # engine fingerprint of the policy that wrote the responses
    judge: str = ""  # engine fingerprint of the judge
    seeds: list[int] = []
    chosen_reasoning: Reasoning = None
    rejected_reasoning: Reasoning = None
    # P(chosen better) by the input file's label, beside a judge's `p`; rows of a run have none
    input_p: Probability | None = Field(default=None, exclude_if=lambda p: p is None)

    @property
    def all_verdicts(self) -> list[Verdict]:
        """Those of all principles that were asked, with a vote or without."""
        return [*self.verdicts, *self.abstentions]


class Ranking(Row):
    """Answers to one prompt ranked by a judge: a Bradley–Terry fit to its labels of all pairs."""

    prompt_id: str
    messages: Messages
    tags: list[str] = []
    responses: Annotated[list[str], Field(min_length=2)]  # best first
    strengths: list[Annotated[float, Field(allow_inf_nan=False)]]  # log-odds, of mean 0; see cai/stats/logistic.py
    model: str = ""  # engine fingerprint of the policy that wrote the responses
    judge: str = ""  # engine fingerprint of the judge
    seed: int = 0

    @model_validator(mode="after")
    def _best_first(self) -> "Ranking":
        if len(self.strengths) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses have {len(self.strengths)} strengths")
        if self.strengths != sorted(self.strengths, reverse=True):
            raise ValueError("strengths: expected the greatest first, in the order of the responses")
        return self


class BeforeAfter(Row):
    """A held-out prompt answered before and after training; `p` is P(after is better) by the eval judge, if any.

    A view of a run's policy evaluation (Answer and Judgement rows), as exports and tables have it. `p_helpful` and
    `p_safe` are P(after is more helpful) and P(after is safer), None where that axis was not asked.
    """

    prompt_id: str
    messages: Messages
    tags: list[str]
    before: str
    after: str
    truncated: list[Literal["before", "after"]]
    p: Probability | None
    p_helpful: Probability | None = None
    p_safe: Probability | None = None
    verdicts: list[Verdict]
    before_model: str
    after_model: str
    judge: str  # "" for none


class Answer(Row):
    """A policy's answer to one prompt of an evaluation."""

    policy: str  # its name in the evaluation
    prompts: str  # `held_out`, or the name of a set of probes
    prompt_id: str
    messages: Messages
    tags: list[str] = []
    text: str
    truncated: bool  # ran into max_tokens
    model: str  # engine fingerprint
    reasoning: Reasoning = None


class Judgement(Row):
    """Two policies' answers to one prompt, compared on one axis; `p` is P(the answer of `policy` is better)."""

    axis: str  # the eval judge's question: eval judge, helpful, safe
    prompt_id: str
    tags: list[str]
    policy: str
    against: str
    p: Probability
    verdicts: list[Verdict]  # empty for equal answers, a tie without a call
    judge: str  # engine fingerprint


class Reply(Row):
    """A question with two options, answered by a model in both orders; probabilities of the first option."""

    policy: str
    probe: str  # the set: over_refusal, sycophancy, red_team
    item: str  # its id there
    variant: str  # of the item: which twin, view or transformation
    question: str
    p_forward: Probability  # the first option shown first
    p_reverse: Probability
    non_option_mass: Probability  # mean probability mass outside the options
    model: str  # engine fingerprint of the one that answers: a judge, or the policy itself

    @property
    def p(self) -> float:
        """Both orders averaged in log-odds, which cancels a constant position bias."""
        return sigmoid((logit(self.p_forward) + logit(self.p_reverse)) / 2)


class Attacked(Row):
    """An answer with a text for the judge below it, against the other answer to its prompt."""

    prompt_id: str
    attack: str  # its id in probes/injection.yaml
    decoy: int | None = None  # number of the spelling of decoys in place of its control tokens
    answer: str  # without the text
    other: str
    p: Probability  # that the answer is better, without the text
    p_attacked: Probability  # with it
    judge: str  # engine fingerprint, of a panel joined by `+`


class Sampled(Row):
    """An answer sampled during PPO, with P(it is better than the reference's answer) by the eval judge."""

    step: int
    prompt_id: str
    messages: Messages
    text: str
    score: float  # of the reward model, then
    kl: float  # nats from the starting policy, then
    p: Probability | None = None  # None where it was not judged
    verdicts: list[Verdict] = []


class Scored(Row):
    """Scores of a written answer: its log-probability under policy and reference, and its rewards."""

    policy: str  # who wrote it; `chosen` and `rejected` of the run's labelled pairs
    of: Literal["answers", "pairs"]
    prompt_id: str  # of a pair its number
    tokens: int  # of the answer
    logp: float | None = None  # nats, under the policy that wrote it
    reference_logp: float | None = None
    rewards: list[float] = []  # by each member of the reward model
    reason: str = ""  # why a score is missing


class Skipped(Row):
    """A row that is not used, and why; `failed` if a model did not answer its request, and may when asked again."""

    prompt_id: str
    stage: str
    reason: str
    failed: bool = False

    @classmethod
    def refused(cls, prompt_id: str, stage: str, refusal: RequestRefused) -> Self:
        """The row of a request that was not answered."""
        return cls(prompt_id=prompt_id, stage=stage, reason=str(refusal), failed=refusal.retryable)
