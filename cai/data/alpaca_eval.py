"""AlpacaEval's outputs and annotations, https://github.com/tatsu-lab/alpaca_eval.

    outputs       [{"instruction", "output", "generator", "dataset"}, …], as in example/outputs.json
    annotations   [{"instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference"}, …]

`preference` is from 1 (output_1) to 2 (output_2), so that p(output_2 is better) = preference − 1; 0 and 1.5 are draws
(src/alpaca_eval/metrics/helpers.py), and null is an annotation that failed. Where there is an `input` too, it stands
behind its instruction.
"""

from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.data.files import Place, RowOfFile
from cai.data.forms import Read, row_id, text
from cai.data.records import Comparison, Message, Messages

ALSO = ("preference", "annotator", "input", "dataset", "id")


def read_prompt(place: Place, value: RowOfFile) -> Read:
    """The instruction alone; the `dataset` it comes from is its tag."""
    return [_prompt(place, value)]


def read_output(place: Place, value: RowOfFile) -> Read:
    """An output as an answer to learn."""
    return [{**_prompt(place, value), "completion": text(place, value, "output")}]


def read_pair(place: Place, value: RowOfFile) -> Read:
    """An annotation as a soft label, the better output as `chosen`."""
    preference = value.get("preference")
    if preference is None:
        return "the annotator gave no preference"
    try:
        p = 0.5 if float(preference) == 0 else float(preference) - 1
    except (TypeError, ValueError):
        p = -1.0
    if not 0 <= p <= 1:
        raise CaiError(f"{place}: preference: expected a number from 1 to 2, or 0 for a draw, found {preference}")
    first, second = (text(place, value, key) for key in ("output_1", "output_2"))
    (chosen, rejected), p = ((first, second), 1 - p) if p < 0.5 else ((second, first), p)
    made: dict[str, Any] = {"source": "judge", "judge": str(value.get("annotator", ""))}
    return [{**_prompt(place, value), **made, "chosen": chosen, "rejected": rejected, "p": p}]


def _prompt(place: Place, value: RowOfFile) -> dict[str, Any]:
    instruction, more = text(place, value, "instruction"), value.get("input")
    asked = f"{instruction}\n\n{more}" if more else instruction
    messages: Messages = [Message(role="user", content=asked)]
    tags = [str(value["dataset"])] if "dataset" in value else []
    return {"prompt_id": row_id(value, messages), "messages": messages, "tags": tags}


class Entries(NamedTuple):
    """One held-out prompt of a run: the new policy's output, the base model's, and the eval judge's annotation."""

    output: dict[str, Any]
    reference: dict[str, Any]
    annotation: dict[str, Any]


def entries(comparison: Comparison, before: str, after: str, annotator: str) -> Entries | str:
    """A comparison by the names of who answered and who judged; or why AlpacaEval has no place for it."""
    if len(comparison.messages) > 1:
        return "AlpacaEval asks a single instruction, and this prompt has several turns"
    asked = {"instruction": comparison.messages[0]["content"], "dataset": ", ".join(comparison.tags)}
    return Entries(
        output={**asked, "output": comparison.after, "generator": after},
        reference={**asked, "output": comparison.before, "generator": before},
        annotation={
            **asked,
            "output_1": comparison.before,
            "generator_1": before,
            "output_2": comparison.after,
            "generator_2": after,
            "annotator": annotator,
            "preference": 1 + comparison.p,
        },
    )
