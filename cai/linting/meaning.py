"""How near principles are to each other in meaning, as a model reads them."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cai.constitution import TEXTS, Principle

Vectors = NDArray[np.float64]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts as vectors, a row each."""


def similarity(embed: Embed, known: Sequence[Principle]) -> Callable[[Sequence[Principle]], Vectors]:
    """What tells the cosine of any two principles, from -1 to 1, as a matrix.

    Every dimension is standardised over the `known` principles: a few of them are far larger than the others, and all
    texts lean the same way in them (Timkey & van Schijndel 2021, arXiv:2109.04404).
    """

    def vectors(principles: Sequence[Principle]) -> Vectors:
        return embed(["\n".join(getattr(principle, field) for field in TEXTS) for principle in principles])

    background = vectors(known)
    centre, scale = background.mean(axis=0), background.std(axis=0)
    scale[scale == 0] = 1

    def cosines(principles: Sequence[Principle]) -> Vectors:
        standard = (vectors(principles) - centre) / scale
        standard /= np.linalg.norm(standard, axis=1, keepdims=True)
        found: Vectors = standard @ standard.T
        return found

    return cosines
