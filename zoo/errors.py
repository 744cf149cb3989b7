"""The one exception that users meet, and the did-you-mean that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """What the user has or asked for cannot work.

    The message is one line (rarely a few) that says what was wrong and what to do. The command lines print it
    without a traceback and exit with code 2.
    """

    def __str__(self) -> str:
        # DataLoader workers re-raise an exception with the whole traceback as its text: keep the message alone.
        text = super().__str__()
        marker = "ZooError: "
        if "Original Traceback" in text and marker in text:
            return text.rsplit(marker, 1)[1].strip()
        return text


def did_you_mean(word: str, choices: Iterable[str], n: int = 3) -> str:
    """`" Did you mean 'a' or 'b'?"` for the names in `choices` closest to `word`; an empty string if none is close."""
    close = difflib.get_close_matches(word, list(choices), n=n, cutoff=0.6)
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(name) for name in close) + "?"
