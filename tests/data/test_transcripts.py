from hypothesis import given
from hypothesis import strategies as st

from cai.data.records import Message, Messages
from cai.data.transcripts import TURN, is_transcript, transcript, transcript_problem, turns

TEXT = st.text(st.sampled_from("aé \n\t:HumanAsit\u2028"), max_size=30)  # what separators are made of, above all


@given(st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), TEXT), min_size=1, max_size=6))
def test_every_transcript_prints_back_byte_for_byte(said: list[tuple[str, str]]) -> None:
    written = "".join(f"\n\n{who}: {text}" for who, text in said)
    assert is_transcript(written)
    printed = transcript(turns(written))
    # A text that holds what looks like a turn may lack the space behind it, which printing puts there.
    assert printed == TURN.sub(lambda found: f"\n\n{found[1]}: ", written)
    if not any(TURN.search(text) for _, text in said):
        assert printed == written


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=6))
def test_a_conversation_comes_back_unless_a_turn_would_be_read_as_two(said: list[tuple[str, str]]) -> None:
    messages: Messages = [Message(role=role, content=text) for role, text in said]  # type: ignore[typeddict-item]
    assert (turns(transcript(messages)) == messages) == (transcript_problem(messages) is None)


def test_turns_keep_their_white_space_and_an_empty_last_one() -> None:
    written = "\n\nHuman:  two spaces\n\n\nAssistant: a line \n\nHuman: \n\nAssistant: "
    assert [turn["content"] for turn in turns(written)] == [" two spaces\n", "a line ", "", ""]
    assert transcript(turns(written)) == written
    assert not is_transcript("Human: Hi")
