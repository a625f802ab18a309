"""Reading the YAML that users write into models, with errors that name file, line and field."""

import contextlib
import copy
import difflib
import re
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cai.config.errors import CaiError, decoding_hint, exists, reading, without_password
from cai.config.validation import Location, Problem, bool_for_number, describe, format_location, problems, reaching

HINTS = {  # part of a message of PyYAML, and what to write instead
    "'\\t' that cannot start": "; put spaces in place of the tab",
    "mapping values are not allowed": "; put a text with a colon in quotes, or below `>-`",
    "'`' that cannot start": "; put a text that begins with ` in quotes, or below `>-`",
    "'@' that cannot start": "; put a text that begins with @ in quotes, or below `>-`",
    "'%' that cannot start": "; put a text that begins with % in quotes, or below `>-`",
    "undefined alias": "; put a text that begins with * in quotes, or below `>-`",
    "alphabetic or numeric character": "; put a text that begins with * or & in quotes, or below `>-`",
}
SET = "--set "  # begins the place of a value that an option set
INDEX = re.compile(r"[0-9]{1,9}")  # the number of a list's entry in --set
MOST_DIGITS = 300  # of a whole number; about as many as the largest float has
TYPES = {  # YAML's tags of single values, and what their text must be
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "timestamp": "a date",
}
MOST_PLACES = 100_000  # values of a file, aliases expanded; a constitution of 16 principles has 400
Kind = Literal["constitution", "run file", "sweep"]
USED_BY: dict[Kind, str] = {  # what a file of each kind is for
    "constitution": "a run file names it as `constitution:`, and `cai try {path}` shows what it does",
    "run file": "`cai run {path}` runs it, and a sweep names it as `run:`",
    "sweep": "`cai sweep {path}` runs it",
}

RENAMED: dict[str, str] = {  # keys of earlier versions, and their new dotted name; without a dot, in the same place
    "engine.context": "engine.max_model_len",
    "engine.max_in_flight": "engine.concurrency",
    "evaluate.referee": "evaluate.constitution",
    "judge.band": "judge.cot_clamp",
    "judge.thought_tokens": "judge.cot_max_tokens",
    "judge.thoughts": "judge.cot_samples",
    "judge_gate.outside": "judge_gate.non_option_mass",
    "judge_gate.same_position": "judge_gate.position_bias",
    "preferences.weight": "train[N].data.human",
    "train.accumulate": "gradient_accumulation_steps",
    "train.batch_size": "per_device_train_batch_size",
    "train.center": "center_rewards_coefficient",
    "train.clip": "cliprange",
    "train.epochs": "num_train_epochs",
    "epochs": "num_ppo_epochs",  # in PPO, which has no num_train_epochs
    "train.gae_lambda": "lam",
    "train.generations": "num_generations",
    "train.lora_rank": "lora_r",
    "train.loss": "loss_type",
    "train.sample_every": "sample_steps",
    "train.sampler": "use_vllm",
    "train.save_every": "save_steps",
    "train.value_clip": "cliprange_value",
    "train.value_coef": "vf_coef",
}


class Section(BaseModel):
    """Base of everything a user writes in YAML: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_bool_for_number(cls, data: Any) -> Any:
        for key, value in data.items() if isinstance(data, dict) else ():
            if key in cls.model_fields and (message := bool_for_number(cls, key, value)):
                raise PydanticCustomError("bool_for_number", "{message}", {"message": message, "at": (key,)})
        return data


# Upper bounds that only a typing error exceeds: it costs one line then, not a run that never ends or a failure in it.
MOST_TOKENS = 10_000_000  # Llama 4 Scout's context, the longest of any published model
MOST_REPEATS = 1_000_000  # of what a run does one after another: eleven days at one a second
MOST_TEMPERATURE = 100.0  # where a model's likeliest token has hardly more than its share of the vocabulary
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Repeats = Annotated[int, Field(ge=1, le=MOST_REPEATS)]
Temperature = Annotated[float, Field(ge=0, le=MOST_TEMPERATURE)]
PositiveTemperature = Annotated[float, Field(gt=0, le=MOST_TEMPERATURE)]
OFF_IS_TEXT = BeforeValidator(lambda value: "off" if value is False else value)  # as YAML 1.1 reads a bare `off`


def json_value(value: Any) -> Any:
    """A value that JSON has. Raises: PydanticCustomError for a date, bytes or a set, such as `2024-01-01`."""
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(key, str):
                raise PydanticCustomError("no_json", "{m}", {"m": f"expected texts as keys, found {describe(key)}"})
            json_value(inside)
    elif not isinstance(value, str | int | float | bool | None):
        message = f"expected a text, a number, true, false, null, a list or a mapping, found {describe(value)}"
        raise PydanticCustomError("no_json", "{m}", {"m": message})
    return value


JsonValue = Annotated[Any, AfterValidator(json_value)]
"""A value of a setting that is not known here: anything but YAML's dates, bytes and sets."""


class YamlSource(NamedTuple):
    """A parsed YAML file: its data, and the origin of each location, `file:line` or the `--set` option."""

    path: Path
    data: Any
    places: dict[Location, str]


AnySection = TypeVar("AnySection", bound=BaseModel)


def load_yaml(path: Path, model: type[AnySection]) -> AnySection:
    """Read a YAML file into `model`.

    Raises: CaiError naming file, line, field, what was found and what was expected.
    """
    return validate(read_yaml(path), model)


def read_yaml(path: Path) -> YamlSource:
    """Parse one YAML document, remembering lines; duplicate keys and unreadable files raise CaiError."""
    source = _parsed(path, read_text(path))
    return source._replace(data=copy.deepcopy(source.data))


@lru_cache(maxsize=16)
def _parsed(path: Path, text: str) -> YamlSource:
    """What a text says. PyYAML takes 0.1 s for 16 principles, which a run reads twice, as each run of a sweep does."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise CaiError(f"{path}: the file is empty")
        places: dict[Location, str] = {}
        _collect_places(path, node, (), places)
        return YamlSource(path, _Constructor().construct_document(node), places)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem or error.context)
        hint = next((hint for part, hint in HINTS.items() if part in problem), "")
        raise CaiError(f"{path}:{line}: not valid YAML: {problem}{hint}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise CaiError(
            f"{path}:{line}: not valid YAML: the control character U+{ord(text[error.position]):04X}"
        ) from error
    except yaml.YAMLError as error:
        raise CaiError(f"{path}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise CaiError(f"{path}: not valid YAML: nested too deeply, or an alias within what it stands for") from error


class _Constructor(yaml.constructor.SafeConstructor):
    """PyYAML's, with an error that names the line for every value that is not what its tag or form says."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError):  # such as 2024-13-45, `!!bool x`, `!!int ""`
            expected = TYPES.get(node.tag.rpartition(":")[2], "a value")
            raise self._error(node, f"expected {expected}, found {describe(node.value)}") from None
        if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            raise self._error(node, f"expected a number of at most {MOST_DIGITS} digits, found {describe(node.value)}")
        if isinstance(value, str) and not value.isascii():
            try:
                return value.encode("utf-16", "surrogatepass").decode(
                    "utf-16"
                )  # joins the halves of JSON's pairs of \\u escapes
            except UnicodeDecodeError:
                raise self._error(node, f"half of a surrogate pair in {describe(node.value)}") from None
        return value

    def _error(self, node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _parse_value(text: str) -> Any:
    """The value of an option. Raises: yaml.YAMLError, RecursionError."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return None if node is None else _Constructor().construct_document(node)


def read_kind(path: Path, expected: Kind) -> YamlSource:
    """`read_yaml` of a file of one kind.

    Raises: CaiError also for a file whose keys are those of another kind; suggests one for a missing file.
    """
    if not exists(path):
        other = _similar_of_kind(path, expected)
        raise CaiError(f"{without_password(str(path))}: no such file" + (f"; did you mean '{other}'?" if other else ""))
    source = read_yaml(path)
    expect_kind(source, expected)
    return source


def expect_kind(source: YamlSource, expected: Kind) -> None:
    """Raises: CaiError for a file whose keys are those of another kind of file."""
    kinds = _kinds(source)
    if len(kinds) == 1 and kinds[0] != expected:
        use = USED_BY[kinds[0]].format(path=source.path)
        raise CaiError(f"{source.path}: expected a {expected}, found a {kinds[0]}; {use}")


def _similar_of_kind(path: Path, kind: Kind) -> Path | None:
    """The file of a kind with the most similar name, in the same folder or in `examples`; None if none is similar."""
    for folder in (path.parent, Path("examples")):
        files = {file.stem: file for file in sorted(folder.glob("*.y*ml"))} if "\0" not in str(path) else {}
        for name in difflib.get_close_matches(path.stem, files, n=5):
            with contextlib.suppress(CaiError):
                if _kinds(read_yaml(files[name])) == [kind]:
                    return files[name]
    return None


def _kinds(source: YamlSource) -> list[Kind]:
    """The kinds of file that the keys are those of."""
    keys = source.data if isinstance(source.data, dict) else {}
    signs: dict[Kind, bool] = {
        "constitution": isinstance(keys.get("principles"), list),
        "run file": "prompts" in keys and ("model" in keys or "constitution" in keys),
        "sweep": "run" in keys and ("grid" in keys or "set" in keys or isinstance(keys.get("principles"), str)),
    }
    return [kind for kind, matches in signs.items() if matches]


def read_text(path: Path) -> str:
    """The file's text; CaiError when it is missing, a folder or not UTF-8."""
    with reading(path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = decoding_hint(content)
        raise CaiError(f"{path}:{line}: not UTF-8 text: byte 0x{content[error.start]:02x}{hint}") from None


def as_yaml(value: Any) -> str:
    """A JSON value as YAML."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))


def _collect_places(path: Path, node: yaml.Node, at: Location, places: dict[Location, str]) -> None:
    places.setdefault(at, f"{path}:{node.start_mark.line + 1}")
    if len(places) > MOST_PLACES:
        raise CaiError(f"{path}: more than {MOST_PLACES:,} values; its aliases stand for too many")
    if isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if isinstance(key, Hashable):
                if key in seen:
                    raise CaiError(f"{path}:{line}: duplicate key '{key}', first on line {seen[key]}")
                seen[key] = line
                places[*at, str(key)] = f"{path}:{line}"
                _collect_places(path, value_node, (*at, str(key)), places)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_places(path, child, (*at, index), places)


def apply_overrides(source: YamlSource, overrides: list[str]) -> YamlSource:
    """A source with `key.path=value` overrides applied; values are parsed as YAML."""
    data, places = copy.deepcopy(source.data), dict(source.places)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise CaiError(f"--set {override}: expected key=value, such as judge.principles=16")
        try:
            value = _parse_value(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or str(error)
            raise CaiError(f"{SET}{dotted}: the value {describe(text)} is not valid YAML: {problem}") from None
        except RecursionError:
            raise CaiError(f"{SET}{dotted}: the value is nested too deeply") from None
        steps: list[str | int] = [int(step) if INDEX.fullmatch(step) else step for step in dotted.split(".")]
        _set_at(data, steps, value)
        at = tuple(steps)
        places = {known: place for known, place in places.items() if known[: len(at)] != at}
        for n in range(1, len(at) + 1):
            places.setdefault(at[:n], f"{SET}{dotted}")  # also of sections that the file does not have
    return YamlSource(source.path, data, places)


def _set_at(data: Any, steps: list[str | int], value: Any) -> None:
    """Set a value within data. Raises: CaiError naming the step that the data does not have."""
    for n, step in enumerate(steps):
        name = ".".join(map(str, steps[:n]))
        if problem := _no_step(data, step, name):
            raise CaiError(f"{SET}{'.'.join(map(str, steps))}: {problem}")
        if n == len(steps) - 1:
            data[step] = value
        elif isinstance(data, dict) and data.get(step) is None:
            data[step] = [] if isinstance(steps[n + 1], int) else {}
        data = data[step]


def _no_step(data: Any, step: str | int, name: str) -> str:
    """Why an override cannot go one step further from the data called `name`; empty where it can."""
    if isinstance(data, dict):
        return ""
    if not isinstance(data, list):
        return f"expected a mapping at '{name}', found {describe(data)}"
    if not isinstance(step, int):
        return f"'{name}' is a list of {len(data)}; name an entry by its number, such as {name}.0"
    if step < len(data):
        return ""
    entries = ", ".join(f"{name}.{n}" for n in range(len(data)))
    return f"'{name}' has {f'only {entries}' if entries else 'no entries'}; to add one, set the list: {name}=[…]"


class FileProblem(NamedTuple):
    """An error in a file: `file:line`, the steps into the data, and the message."""

    place: str
    at: Location
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def validate(source: YamlSource, model: type[AnySection]) -> AnySection:
    """Parsed YAML as `model`; every error becomes one line of a CaiError."""
    checked = check(source, model)
    if isinstance(checked, list):
        raise CaiError("\n".join(dict.fromkeys(map(str, checked))))
    return checked


def check(source: YamlSource, model: type[AnySection]) -> AnySection | list[FileProblem]:
    """Parsed YAML as `model`, or all of its errors."""
    try:
        return model.model_validate(source.data)
    except ValidationError as error:
        return [_located(source, problem, model) for problem in problems(model, source.data, error, RENAMED)]


def _located(source: YamlSource, problem: Problem, model: type[BaseModel]) -> FileProblem:
    at = problem.at
    place = next((source.places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in source.places), str(source.path))
    option = f"{SET}{'.'.join(map(str, at))}"
    if place == option or (place.startswith(f"{option}.") and problem.message.startswith("unknown key")):
        below = place.removeprefix(option)
        return FileProblem(place, at, reaching(problem, model, source.data, below).text(below))
    name = format_location(source.data, at)
    return FileProblem(place, at, f"{name}: {problem.text()}" if name else problem.text())
