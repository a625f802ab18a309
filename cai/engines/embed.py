"""Texts as vectors: how a model reads them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def embedding(folder: Path) -> "Callable[[Sequence[str]], NDArray[np.float64]]":
    """What gives each text the mean of its tokens' hidden states before the model's last block: (texts, width).

    The first token is left out: its states are far greater than all others and say little of the text (Xiao et al.
    2024, arXiv:2309.17453).
    """
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(where).eval()

    def vector(text: str) -> "NDArray[np.float64]":
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt").to(where), output_hidden_states=True).hidden_states
        found: NDArray[np.float64] = states[-2][0, 1:].mean(dim=0).double().cpu().numpy()
        return found

    return lambda texts: np.array([vector(text) for text in texts])
