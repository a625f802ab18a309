"""Principles that a model reads alike."""

import re
from pathlib import Path

import numpy as np
import pytest

from cai import constitution
from cai.engines.embed import embedding
from cai.linting.lint import lint
from cai.linting.meaning import Vectors, similarity
from tests.conftest import ROOT
from tests.linting.test_lint import CALM, SOURCES, write

SHIPPED = constitution.load(ROOT / "constitutions/harmless.yaml").principles
QUIET = {
    "id": "quiet",
    "critique": "Find shouting and exclamation marks, where gentle phrases belong.",
    "revision": "Phrase it gently, as a patient nurse would speak.",
    "judge": "Which answer is gentler, as a nurse is?",
}


def topics(texts: list[str]) -> Vectors:
    """Vectors by what a text is about, with one dimension that is large in all of them."""
    topics = ("number|source", "angry|gentl", "people|person", "law|legal", "child|parent")
    counts = np.array([[len(re.findall(topic, text.lower())) for topic in topics] for text in texts], dtype=float)
    length = np.array([[len(text) % 7] for text in texts])
    return np.hstack([1000 + length, counts])


def test_what_a_model_reads_alike_is_a_hint_unless_the_words_tell_it(tmp_path: Path) -> None:
    told = similarity(topics, SHIPPED)
    path = write(tmp_path, SOURCES, CALM, QUIET)
    assert lint(path) == []
    [found] = lint(path, told)
    assert (found.principle, found.rule) == ("quiet", "same-meaning")
    assert "same as 'calm' (line 7): the model reads them alike (0." in found.reason
    [found] = lint(write(tmp_path, CALM, CALM | {"id": "copy"}), told)
    assert (found.rule, "word for word" in found.reason) == ("near-duplicate", True)


def test_a_cosine_does_not_depend_on_how_large_a_dimension_is() -> None:
    stretch = np.array([1e4, 1e-3, *[7.0] * 4])
    once = similarity(topics, SHIPPED)(SHIPPED)
    assert once == pytest.approx(similarity(lambda texts: topics(texts) * stretch, SHIPPED)(SHIPPED))
    assert np.diag(once) == pytest.approx(1)
    assert once == pytest.approx(once.T)


def test_texts_become_vectors_of_a_models_states(tiny_model: Path) -> None:
    embed = embedding(tiny_model)
    vectors = embed(["one text", "one word", "one text"])
    assert vectors.shape[0] == 3
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])  # though they begin alike
    assert np.isfinite(vectors).all()
