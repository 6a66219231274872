"""How much of a text a transcript got right."""

from __future__ import annotations

import re

_NOT_IN_WORDS = re.compile(r"[^\w']+")


def word_accuracy(reference: str, hypothesis: str) -> float:
    """Return 1 minus the word error rate of ``hypothesis``, from 0.0 to 1.0.

    The errors are the fewest words to replace, leave out or put in that turn one text into the
    other, as a share of the words of ``reference``. Case and punctuation do not count. More errors
    than words give 0.0.

    Raises:
        ValueError: ``reference`` has no word, so that no share of it can be right.
    """
    expected, heard = _words(reference), _words(hypothesis)
    if not expected:
        raise ValueError("the reference text has no words")
    return max(0.0, 1 - _edit_distance(expected, heard) / len(expected))


def _words(text: str) -> list[str]:
    return (
        _NOT_IN_WORDS.sub(" ", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).lower().split()
    )


def _edit_distance(source: list[str], target: list[str]) -> int:
    """Levenshtein's distance, one row of the table at a time."""
    row = list(range(len(target) + 1))
    for deleted, word in enumerate(source, 1):
        diagonal, row[0] = row[0], deleted
        for column, other in enumerate(target, 1):
            replaced = diagonal + (word != other)
            diagonal = row[column]
            row[column] = min(replaced, row[column] + 1, row[column - 1] + 1)
    return row[-1]
