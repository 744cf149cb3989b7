"""One wording for every library that only an extra installs."""

from __future__ import annotations

import importlib.abc
import sys

import pytest

from zoo.errors import ZooError
from zoo.extras import imports_of, require


def test_a_missing_library_names_its_extra():
    require("json", "csv", extra="text", why="nothing is missing")
    with pytest.raises(ZooError) as caught:
        require("json", "no_such_a", "no_such_b", extra="medical", why="volumes are read with it")
    text = str(caught.value)
    assert text.startswith("Volumes are read with it, but no_such_a and no_such_b are not installed: ")
    assert '".[medical]"' in text
    assert '"pretraining-zoo[medical]"' in text
    assert "\n" not in text


def test_a_failed_import_does_too(tmp_path, monkeypatch):
    wanted = r"but no_such_c is not installed: pip install .*\[driving\]"
    with pytest.raises(ZooError, match=wanted), imports_of("driving", why="files are written with it"):
        import no_such_c.part  # noqa: F401
    (tmp_path / "too_old.py").write_text("raise ImportError('cannot import name x: this release is too old')")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = r"but cannot import name x: this release is too old: pip install"
    with pytest.raises(ZooError, match=wanted), imports_of("text", why="text is read with it"):
        import too_old  # noqa: F401


def test_our_own_mistakes_are_not_blamed_on_libraries():
    with pytest.raises(ModuleNotFoundError, match="nowhere"), imports_of("text", why="text"):
        import zoo.nowhere  # noqa: F401


def test_a_finder_that_refuses_counts_as_missing(monkeypatch):
    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "no_such_d":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(ZooError, match="no_such_d is not installed"):
        require("no_such_d", extra="text", why="it is needed")
