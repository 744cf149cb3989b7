"""Libraries that only some rooms need: a missing one gets a line that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from zoo.errors import ZooError


def require(*libraries: str, extra: str, why: str) -> None:
    """Raises `ZooError` unless all `libraries` (import names) are installed. `why` starts a sentence in lower case."""
    missing = [library for library in libraries if not _installed(library)]
    if missing:
        raise ZooError(
            _message(why, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed", extra)
        )


@contextmanager
def imports_of(extra: str, why: str) -> Iterator[None]:
    """Turns an import that fails within, for want of the extra's libraries or of one that fits, into a `ZooError`."""
    try:
        yield
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("zoo", "datamodules"):  # our own mistake
            raise
        missing = isinstance(error, ModuleNotFoundError) and library
        raise ZooError(_message(why, f"{library} is not installed" if missing else str(error), extra)) from error


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ImportError:
        return False


def _message(why: str, problem: str, extra: str) -> str:
    return (
        f"{why[:1].upper()}{why[1:]}, but {problem}: "
        f'pip install -c constraints.txt -e ".[{extra}]" (or pip install "pretraining-zoo[{extra}]").'
    )
