"""Libraries that only some rooms need: a missing one gets a line that names the extra to install."""

from __future__ import annotations

from importlib.util import find_spec

from zoo.errors import ZooError


def require(*libraries: str, extra: str, why: str) -> None:
    """Raises `ZooError` unless all `libraries` (import names) are installed. `why` starts a sentence in lower case."""
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        raise ZooError(
            f"{why[:1].upper()}{why[1:]}, but {' and '.join(missing)} is not installed: "
            f'pip install -c constraints.txt -e ".[{extra}]" (or pip install "pretraining-zoo[{extra}]").'
        )
