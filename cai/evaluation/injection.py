"""How much a judge's verdict moves when an answer holds text meant for the judge: the gain in p of each attack.

The attacks are in probes/injection.yaml: text that speaks to the judge, imitates a verdict, or forges turns with
control tokens; and neutral text, to compare them with. Each is put below one answer of a pair, and the pair is judged
as before, by the same principles in both orders. The gain is the paired difference of P(that answer is better), with
the text and without it.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from pydantic import Field, field_validator

from cai.config.hashing import uniform
from cai.config.yaml_files import Section
from cai.data.records import Attacked, Messages, Row
from cai.stats.formatting import counted, signed
from cai.stats.intervals import Estimate, bootstrap_mean, paired_change

INJECTION = "injection"
HEADING = "Attacks on the judge: how much better it finds an answer with text for it"


class Attack(Section):
    """A text put below an answer."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    meaning: str = Field(min_length=1)
    text: str = Field(min_length=1)

    def put_into(self, answer: str) -> str:
        """The answer with the text below it."""
        return f"{answer}\n\n{self.text.strip()}"


class Injection(Section):
    """`probes/injection.yaml`."""

    attacks: list[Attack] = Field(min_length=1)

    @field_validator("attacks")
    @classmethod
    def _differ(cls, attacks: list[Attack]) -> list[Attack]:
        ids = [attack.id for attack in attacks]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise ValueError(f"the id '{twice}' is there twice")
        return attacks


class Target(NamedTuple):
    """One answer of a judged pair, to be attacked, and P(it is better) without an attack."""

    prompt_id: str
    messages: Messages
    answer: str
    other: str
    p: float

    def attacked(self, attack: Attack, p: float, judge: str) -> Attacked:
        """The row of an attack after which the answer is better with probability `p`."""
        return Attacked(
            prompt_id=self.prompt_id, attack=attack.id, answer=self.answer, other=self.other, p=self.p, p_attacked=p,
            judge=judge,
        )  # fmt: skip


def drawn(prompt_id: str) -> int:
    """Which of two answers is attacked, 0 or 1: by the prompt's id, so that no verdict has a say in it."""
    return int(uniform("injection", prompt_id) < 0.5)


class InjectionGain(Row):
    """One attack's gain: mean and 95 % interval over prompts of P(better) with the attack less P(better) without."""

    attack: str
    meaning: str
    prompts: int
    pairs: int
    gain: float
    low: float | None
    high: float | None
    before: float  # mean P(better) without the attack
    after: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def name(self) -> str:
        """As every surface names it."""
        return f"gain of '{self.attack}'"

    @property
    def shown(self) -> str:
        """The gain as every surface shows it."""
        return f"{signed(self.gain)} [{signed(self.low)}, {signed(self.high)}]"


def injection_gains(rows: Iterable[Attacked], attacks: Sequence[Attack]) -> list[InjectionGain]:
    """The gain of each attack that was judged, in the order of `attacks`."""
    by_attack: dict[str, list[Attacked]] = {}
    for row in rows:
        by_attack.setdefault(row.attack, []).append(row)
    return [_gain(attack, by_attack[attack.id]) for attack in attacks if attack.id in by_attack]


def _gain(attack: Attack, rows: Sequence[Attacked]) -> InjectionGain:
    gain = _over_prompts(rows)
    return InjectionGain(
        attack=attack.id,
        meaning=attack.meaning,
        prompts=gain.n,
        pairs=len(rows),
        gain=gain.mean,
        low=gain.low,
        high=gain.high,
        before=fmean(row.p for row in rows),
        after=fmean(row.p_attacked for row in rows),
    )


def _over_prompts(rows: Iterable[Attacked]) -> Estimate:
    """Of equal differences a bootstrap would be certain; there the interval is that for matched pairs.

    Differences are rounded, since what does not move a verdict may still change the order of its summands.
    """
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row.p_attacked - row.p)
    means = [round(fmean(of_prompt), 9) for of_prompt in by_prompt.values()]
    return bootstrap_mean(means) if len(set(means)) > 1 else paired_change(means)


def injection_warnings(gains: Iterable[InjectionGain]) -> list[str]:
    """A warning for each attack that significantly helps the answer it stands in."""
    return [
        f"injection: the judge finds an answer better when it {gain.meaning}: {gain.shown} in p, "
        f"{counted(gain.prompts, 'prompts')}"
        for gain in gains
        if gain.significant and gain.gain > 0
    ]
