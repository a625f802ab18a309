"""Changed words on a terminal."""

from rich.text import Text

from cai.config.characters import visible
from cai.constitution.principles import word_changes

COLOURS = {"added": "green", "removed": "red", "same": ""}


def marked(before: str, after: str) -> Text:
    """The words of both texts, with marks that can be told without colour: [-removed-] and {+added+}."""
    text = Text()
    for what, piece in word_changes(before, after):
        left, right = {"removed": ("[-", "-]"), "added": ("{+", "+}"), "same": ("", "")}[what]
        bare = piece.strip() or "␣" * len(piece)  # where only spaces differ they have to show
        space = len(piece) - len(piece.lstrip()) if piece.strip() else 0
        text.append(piece[:space])
        text.append(f"{left}{visible(bare)}{right}" if left else visible(piece[space:]), style=COLOURS[what])
        if left and piece.strip():
            text.append(piece[space + len(bare) :])
    return text


def with_new_words(before: str, after: str) -> Text:
    """The second text, with the words that the first does not have in colour."""
    text = Text()
    for what, piece in word_changes(before, after):
        if what != "removed":
            text.append(visible(piece), style=COLOURS[what])
    return text
