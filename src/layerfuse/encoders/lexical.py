"""The lexical encoder: counts of words and of pairs of neighbors, hashed into columns.

It is frozen like the others: the columns depend on no text and no label. What they say of the
classes is learned by `layerfuse.probing.ClassCentroids`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

N_COLUMNS = 2**20

# Signs of scripts without spaces, and emoji, are words each; marks and joiners are parts of words.
_WORD = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{So}]"
    r"|[\p{L}\p{M}\p{N}\u200c\u200d--[\p{Han}\p{Hiragana}\p{Katakana}]]+"
)


def count_words(texts: Sequence[str]) -> csr_matrix:
    """Log counts of words and of pairs of neighbors, whatever their case.

    Returns
    -------
    csr_matrix of float32 of shape (n_texts, `N_COLUMNS`)
        log(1 + count); a text without a word has an empty row.

    Examples
    --------
    >>> count_words(["A film, a plot", ""]).getnnz(axis=1).tolist()
    [6, 0]
    """
    import regex
    from sklearn.feature_extraction.text import HashingVectorizer

    counter = HashingVectorizer(
        n_features=N_COLUMNS,
        preprocessor=_plain,
        ngram_range=(1, 2),
        token_pattern=None,
        tokenizer=regex.compile(_WORD, regex.V1).findall,
        norm=None,
        alternate_sign=False,
        dtype=np.float32,
    )
    counts = counter.transform(texts)
    np.log1p(counts.data, out=counts.data)
    return counts


def _plain(text: str) -> str:
    """One form and case of letters that can be written in several."""
    return unicodedata.normalize("NFKC", text).casefold()
