"""Drawing systems, and files of them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest

from datamodules.fractals.files import read_systems, write_systems
from datamodules.fractals.systems import (
    SeededSystems,
    jitter_system,
    sample_singular_values,
    sample_system,
    sigma_factor,
    sigma_range,
    singular_values_of,
)
from zoo.errors import ZooError


@pytest.fixture(scope="module")
def many() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [sample_system(rng) for _ in range(2000)]


def test_every_map_contracts_and_the_sigma_factor_is_uniform_in_its_range(many):
    for n in (2, 3, 4):
        systems = [system for system in many if len(system) == n]
        low, high = sigma_range(n)
        assert abs(len(systems) / len(many) - 1 / 3) < 0.05
        factors = np.array([sigma_factor(system) for system in systems])
        assert kstest(factors, "uniform", (low, high - low)).pvalue > 1e-3
        assert max(singular_values_of(system).max() for system in systems) <= 1 + 1e-12
    means = np.array([singular_values_of(system).mean(axis=0) for system in many if len(system) == 2]).mean(axis=0)
    np.testing.assert_allclose(means, [0.764, 0.555], atol=0.01)


def test_half_of_the_maps_reflect(many):
    signs = np.concatenate([np.linalg.det(system[:, :, :2]) < 0 for system in many])
    assert abs(signs.mean() - 0.5) < 0.03
    translations = np.concatenate([system[:, :, 2].ravel() for system in many])
    assert kstest(translations, "uniform", (-1, 2)).pvalue > 1e-3


def test_seeded_systems_are_distributed_as_those_of_one_stream(many):
    """What recipes draw, each system from a seed of its own, beside the official sampler's single stream."""
    seeded = [SeededSystems(2000, seed=8)(index) for index in range(2000)]
    for n in (2, 3, 4):
        ours, one = (np.array([system for system in systems if len(system) == n]) for systems in (seeded, many))
        values = [np.array([singular_values_of(system) for system in systems]) for systems in (ours, one)]
        for pair in range(n):  # they are not exchangeable: the last is larger
            for which in (0, 1):
                assert ks_2samp(*(value[:, pair, which] for value in values)).pvalue > 1e-4, (n, pair, which)
        assert ks_2samp(*([sigma_factor(system) for system in systems] for systems in (ours, one))).pvalue > 1e-4
        reflected = [(np.linalg.det(systems[..., :2]) < 0).mean() for systems in (ours, one)]
        assert abs(reflected[0] - reflected[1]) < 0.06


def test_seeded_systems_do_not_depend_on_their_number():
    few, lots = SeededSystems(10, seed=3), SeededSystems(1_000_000, seed=3)
    np.testing.assert_array_equal(few(7), lots(7))
    assert not np.array_equal(lots(7)[0], SeededSystems(10, seed=4)(7)[0])
    assert lots(999_999).shape[1:] == (2, 3)
    with pytest.raises(IndexError):
        few(10)


@pytest.mark.parametrize("kind", ["scale", "svd", "sval", "fractaldb-2", "none"])
def test_jitter_keeps_the_system_and_its_contraction(kind, many):
    rng = np.random.default_rng(1)
    for system in many[:50]:
        before = system.copy()
        jittered = jitter_system(system, kind, rng)
        np.testing.assert_array_equal(system, before)
        assert singular_values_of(jittered).max() <= 1 + 1e-12
        assert (kind == "none") == (jittered is system) or np.array_equal(jittered, system)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_singular_values(2, 6.5, np.random.default_rng(0)), "between 0 and 6"),
        (lambda: sample_system(np.random.default_rng(0), (4, 2)), "half-open range"),
        (lambda: jitter_system(np.zeros((2, 2, 3)), "sdv", np.random.default_rng(0)), "jitter is one of"),
        (lambda: SeededSystems(0), "at least one system"),
        (lambda: SeededSystems(3, sampler="best"), "'paper' or 'uniform'"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ZooError, match=message):
        call()


def official_pickle(path, systems) -> None:
    content = {"params": [{"system": system} for system in systems], "hparams": {"n": (2, 5)}}
    path.write_bytes(pickle.dumps(content))


def test_files_give_back_what_was_written(tmp_path, many):
    write_systems(tmp_path / "a.npz", many[:20])
    official_pickle(tmp_path / "a.pkl", many[:20])
    (tmp_path / "old.pkl").write_bytes(_without_frames(many[:20]))
    for name in ("a.npz", "a.pkl", "old.pkl"):
        read = read_systems(tmp_path / name)
        assert len(read) == 20
        for index in range(20):
            np.testing.assert_array_equal(read(index), many[index])
        assert len(read_systems(tmp_path / name, 5)) == 5


def _without_frames(systems) -> bytes:
    """Protocol 3 in numpy 1's names: text opcodes, so that the name can be replaced."""
    content = {"params": [{"system": system} for system in systems]}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def _expanding(system):
    changed = system.copy()
    changed[0, :, :2] = np.diag([1.3, 0.4])
    return changed


def _nan(system):
    changed = system.copy()
    changed[0, 0, 0] = np.nan
    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan, "entry 1, holds NaN"),
        (_expanding, "entry 1, does not contract.*1.3"),
        (lambda system: system[:1], "entry 1, has 1 maps"),
        (lambda system: system[:, :1], "entry 1, should have the shape"),
        (lambda system: np.zeros_like(system), "entry 1, is degenerate"),
        (lambda system: "text", "entry 1, is no array"),
    ],
)
def test_bad_entries_are_named(tmp_path, many, spoil, message):
    path = tmp_path / "codes.pkl"
    official_pickle(path, [many[0], spoil(many[1]), many[2]])
    with pytest.raises(ZooError, match=message) as caught:
        read_systems(path)
    assert str(path) in str(caught.value)
    assert len(read_systems(path, 1)) == 1


def test_expansion_can_be_allowed(tmp_path, many):
    official_pickle(tmp_path / "codes.pkl", [_expanding(many[0])])
    assert len(read_systems(tmp_path / "codes.pkl", allow_expansion=True)) == 1


def test_bad_files(tmp_path, many):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    for name, content, message in (
        ("evil.pkl", pickle.dumps({"params": [Evil()]}), "builtins.print, and only numpy"),
        ("list.pkl", pickle.dumps([1]), "a list under 'params'"),
        ("entry.pkl", pickle.dumps({"params": [{}]}), "entry 0, has no 'system'"),
        ("noise.pkl", b"noise", "no file of fractal systems"),
        ("noise.npz", b"noise", "arrays n and systems"),
        ("empty.npz", b"", "arrays n and systems"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ZooError, match=message):
            read_systems(tmp_path / name)
    with pytest.raises(ZooError, match="no file of fractal systems"):
        read_systems(tmp_path / "missing.npz")
    write_systems(tmp_path / "few.npz", many[:3])
    with pytest.raises(ZooError, match="holds 3 systems, fewer than the 4"):
        read_systems(tmp_path / "few.npz", 4)
