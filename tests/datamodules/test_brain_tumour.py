"""Brain-tumour MRI: names of public sets, what is refused and how, caching, splits, volumes put back in place."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules.bm_mae import BMMAEDataModule
from datamodules.brain_cohort import CONTRAST, make_subject, write_cohort
from datamodules.brain_table import TumourTableDataModule, fold_indices, read_table
from datamodules.brain_tumour import Rules, TumourDataModule, TumourDataset, augment, scan, split_by_patient
from zoo.errors import ZooError
from zoo.nn import mri
from zoo.nn.subjects import SEQUENCES, Subject, find_subjects, one_subject, parse_name

SHAPE = (20, 22, 18)
RULES = Rules(size=16)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("mri") / "cohort", 6, SHAPE, seed=3)


@pytest.fixture
def own(cohort, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(cohort, tmp_path / "own"))


def data(root: Path, **arguments) -> TumourDataModule:
    defaults = dict(image_size=16, batch_size=2, num_workers=0, val_fraction=0.34)
    return TumourDataModule(str(root), **(defaults | arguments))


def file(root: Path, index: int, kind: str) -> Path:
    return root / f"BraTS2021_{index:05d}" / f"BraTS2021_{index:05d}_{kind}.nii.gz"


def rewrite(path: Path, change) -> None:
    image = nib.load(path)
    voxels, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(voxels, affine), path)


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(("name", "expected"), [
    ("BraTS2021_00000_t1ce.nii.gz", ("BraTS2021_00000", "brats", "t1ce")),
    ("BraTS20_Training_001_flair.nii", ("BraTS20_Training_001", "brats", "flair")),
    ("Brats18_CBICA_AAB_1_seg.nii.gz", ("Brats18_CBICA_AAB_1", "brats", "seg")),
    ("BraTS-GLI-00005-100-t1c.nii.gz", ("BraTS-GLI-00005-100", "brats-gli", "t1ce")),
    ("BraTS-GLI-00005-100-t2f.nii.gz", ("BraTS-GLI-00005-100", "brats-gli", "flair")),
    ("UPENN-GBM-00001_11_T1GD.nii.gz", ("UPENN-GBM-00001_11", "upenn", "t1ce")),
    ("UPENN-GBM-00001_11_T1.nii.gz", ("UPENN-GBM-00001_11", "upenn", "t1")),
    ("UPENN-GBM-00001_11_segm.nii.gz", ("UPENN-GBM-00001_11", "upenn", "seg")),
    ("UPENN-GBM-00001_11_automated_approx_segm.nii.gz", ("UPENN-GBM-00001_11", "upenn", "approx")),
    ("W39_1998.09.19_Segm.nii", None),
    ("BraTS2021_00000_t1.png", None),
    ("_t1.nii.gz", None),
])  # fmt: skip
def test_names(name, expected):
    assert parse_name(name) == expected


def test_visits_of_a_patient_stay_together():
    subjects = [Subject(f"BraTS-GLI-{i:05d}-{visit:03d}", "brats-gli") for i in range(10) for visit in (100, 101)]
    subjects += [Subject("UPENN-GBM-00001_11", "upenn"), Subject("UPENN-GBM-00001_21", "upenn")]
    train, val = split_by_patient(subjects, 0.3, seed=1)
    assert {s.patient for s in train}.isdisjoint({s.patient for s in val})
    assert len(train) + len(val) == 22
    assert split_by_patient(subjects, 0.3, seed=1) == (train, val)
    assert split_by_patient(subjects, 0.3, seed=2) != (train, val)


def test_layouts_of_all_three_sets(tmp_path, cohort):
    gli = write_cohort(tmp_path / "gli", 2, SHAPE, names="brats-gli", compress=False)
    upenn = tmp_path / "upenn"
    for index in range(2):
        name = f"UPENN-GBM-{index:05d}_11"
        spellings = dict(zip(SEQUENCES, ("T1", "T1GD", "T2", "FLAIR"), strict=True))
        (upenn / "images_structural" / name).mkdir(parents=True)
        (upenn / "images_segm").mkdir(exist_ok=True)
        for kind, spelling in spellings.items():
            shutil.copy(file(cohort, index, kind), upenn / "images_structural" / name / f"{name}_{spelling}.nii.gz")
        shutil.copy(file(cohort, index, "seg"), upenn / "images_segm" / f"{name}_segm.nii.gz")
    for root, names in ((cohort, "brats"), (gli, "brats-gli"), (upenn, "upenn")):
        found = scan(root, Rules(size=16, seg=True)).subjects
        assert {s.names for s in found} == {names}
        assert all(not s.missing and s.seg for s in found)
        item = TumourDataset(found, Rules(size=16, seg=True))[0]
        assert set(SEQUENCES) < set(item)
        assert item["seg"].shape == (3, 16, 16, 16)
        assert item["seg"][1].sum() >= item["seg"][0].sum() >= item["seg"][2].sum()


def test_enhancing_tumour_is_the_same_under_both_numberings(tmp_path):
    items = []
    for names in ("brats", "brats-gli"):
        root = write_cohort(tmp_path / names, 1, SHAPE, names=names, enhancing_share=1.0)
        found = scan(root, Rules(size=16, seg=True))
        items.append(TumourDataset(found.subjects, Rules(size=16, seg=True))[0]["seg"])
    assert items[0][2].sum() > 0
    assert torch.equal(*items)


def test_two_files_for_one_place(own):
    shutil.copy(file(own, 0, "t1"), own / "BraTS2021_00000_t1.nii.gz")
    with pytest.raises(ZooError, match="BraTS2021_00000: two files claim to be its t1"):
        find_subjects(own)


def test_the_misnamed_segmentation_of_brats_2020_is_found(own):
    """Subject 355's is called W39_1998.09.19_Segm.nii there."""
    folder = own / "BraTS2021_00001"
    file(own, 1, "seg").rename(folder / "W39_1998.09.19_Segm.nii.gz")
    subjects, strays = find_subjects(own)
    assert not strays
    assert subjects[1].seg == folder / "W39_1998.09.19_Segm.nii.gz"
    item = TumourDataset(scan(own, Rules(size=16, seg=True)).subjects, Rules(size=16, seg=True))[1]
    assert item["seg"][1].any()
    # Nothing is guessed where it could belong to another subject, or where there are two.
    shutil.copy(file(own, 0, "t1"), folder / "BraTS2021_99999_t1.nii.gz")
    assert [path.name for path in find_subjects(own)[1]] == ["W39_1998.09.19_Segm.nii.gz"]
    (folder / "BraTS2021_99999_t1.nii.gz").unlink()
    shutil.copy(folder / "W39_1998.09.19_Segm.nii.gz", folder / "W40_Segm.nii.gz")
    assert len(find_subjects(own)[1]) == 2


def test_a_plain_loop_over_a_dataset_ends(cohort):
    module = data(cohort, on_bad_subject="skip")
    module.setup()
    for dataset in (module.train_data, module.val_data, module.train_dataloader().dataset):
        assert sum(1 for _ in dataset) == len(dataset)
    with pytest.raises(IndexError):
        module.val_data[len(module.val_data)]


def test_folders_without_mri(tmp_path):
    with pytest.raises(ZooError, match="There is no folder"):
        find_subjects(tmp_path / "nowhere")
    (tmp_path / "brain.nii.gz").write_bytes(b"x")
    with pytest.raises(ZooError, match=r"holds no MRI named as in BraTS.*1 NIfTI files of other names, such as brain"):
        find_subjects(tmp_path)
    with pytest.raises(ZooError, match="does not say which sequence"):
        one_subject(tmp_path / "brain.nii.gz")
    with pytest.raises(ZooError, match="not pet"):
        one_subject({"pet": "x.nii"})


# ---------------------------------------------------------------------- bad subjects: one line with the id


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def narrow(voxels, affine):
    return voxels[:12], affine


BAD = {
    "missing": (lambda r: file(r, 1, "t2").unlink(), "BraTS2021_00001: t2 is missing"),
    "no sequence": (
        lambda r: [file(r, 1, k).unlink() for k in SEQUENCES], "BraTS2021_00001: there is no usable sequence"),
    "shape": (lambda r: rewrite(file(r, 1, "t2"), lambda v, a: (v[:-1], a)), r"BraTS2021_00001: t2 has shape \(19, 22"),
    "affine": (
        lambda r: rewrite(file(r, 1, "flair"), lambda v, a: (v, a + np.eye(4) * 0.05 * (np.arange(4) < 3))),
        "BraTS2021_00001: the affines of flair and t1 differ by 0.05"),
    "nan": (
        lambda r: rewrite(file(r, 1, "t1"), lambda v, a: (np.where(v > 300, np.nan, v).astype(np.float32), a)),
        "BraTS2021_00001.*not finite"),
    "constant": (lambda r: rewrite(file(r, 1, "t1ce"), lambda v, a: (v * 0, a)), "BraTS2021_00001.*is constant"),
    "constant inside": (
        lambda r: rewrite(file(r, 1, "t1ce"), lambda v, a: ((v > 0).astype(np.int16), a)),
        "BraTS2021_00001: t1ce is constant in the part"),
    "truncated": (lambda r: truncate(file(r, 1, "t1")), "BraTS2021_00001.*truncated"),
    "not nifti": (lambda r: file(r, 1, "t1").write_bytes(gzip.compress(b"hello")), "BraTS2021_00001.*no NIfTI file"),
    "small": (
        lambda r: [rewrite(file(r, 1, k), narrow) for k in (*SEQUENCES, "seg")],
        "BraTS2021_00001: an axis has 12 voxels of 1 mm, fewer than the 16"),
    "label 3": (
        lambda r: rewrite(file(r, 1, "seg"), lambda v, a: (np.where(v == 2, 3, v), a)),
        "BraTS2021_00001.*labels 3.*data.labels to brats2023"),
    "label 7": (
        lambda r: rewrite(file(r, 1, "seg"), lambda v, a: (np.where(v == 2, 7, v), a)),
        "BraTS2021_00001.*labels 7, not among 0, 1, 2, 4"),
    "no seg": (lambda r: file(r, 1, "seg").unlink(), "BraTS2021_00001: there is no segmentation"),
    "4-D": (
        lambda r: rewrite(file(r, 1, "t1"), lambda v, a: (np.stack([v, v], -1), a)), "BraTS2021_00001.*has 4 axes"),
}  # fmt: skip


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@pytest.mark.parametrize("fault", BAD)
def test_bad_subjects_are_named_and_skipped_only_on_request(own, fault, cache, tmp_path):
    break_it, message = BAD[fault]
    break_it(own)

    def read_all(**arguments):
        folder = str(tmp_path / "cache") if cache == "disk" else None
        module = data(own, segmentation=True, cache=cache, cache_dir=folder, **arguments)
        module.setup()
        items = [dataset[i] for dataset in (module.train_data, module.val_data) for i in range(len(dataset))]
        return module, items

    with pytest.raises(ZooError, match=message) as caught:
        read_all()
    assert "\n" not in str(caught.value)
    with (
        pytest.warns()
        if fault in ("nan", "constant", "constant inside", "truncated", "label 3", "label 7")
        else _quiet()
    ):
        module, items = read_all(on_bad_subject="skip")
    assert module.num_skipped == 1
    assert "BraTS2021_00001" not in {item["subject"] for item in items}


class _quiet:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_skipping_says_so_in_the_table(own, capsys):
    file(own, 2, "t2").unlink()
    (own / "readme.nii").write_bytes(b"")
    module = data(own, on_missing="drop")
    module.setup()
    shown = capsys.readouterr().out
    assert "5 of 5 patients (BraTS 2018-2021: 5)" in shown
    assert "BraTS2021_00002 (no t2)" in shown
    assert "readme.nii" in shown


def test_subjects_with_what_they_have(own):
    file(own, 2, "t2").unlink()
    module = data(own, on_missing="use", val_fraction=0.2)
    module.setup()
    batches = list(module.train_dataloader()) + list(module.val_dataloader())
    for batch in batches:
        for row, subject in enumerate(batch["subject"]):
            complete = subject != "BraTS2021_00002"
            assert batch["present"][row].tolist() == [True, True, complete, True]
            assert complete or not batch["t2"][row].any()


def test_padding_and_resampling_happen_only_aloud(own, capsys):
    for kind in (*SEQUENCES, "seg"):
        rewrite(file(own, 0, kind), narrow)
        rewrite(file(own, 1, kind), lambda v, a: (v, a @ np.diag([1.5, 1.5, 1.5, 1.0])))
    module = data(own, pad=True, segmentation=True)
    module.setup()
    shown = capsys.readouterr().out
    assert "1 subjects have voxels of another size" in shown
    assert "filled up with zeros" in shown
    for dataset in (module.train_data, module.val_data):
        for item in dataset:
            assert all(item[name].shape == (1, 16, 16, 16) for name in SEQUENCES)


# ---------------------------------------------------------------------- voxels


def test_prepared_volumes_are_monais(cohort):
    """The official chain in MONAI's own transforms, against what the data module gives without augmentation."""
    from monai.transforms import (
        CenterSpatialCropd,
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        LoadImaged,
        NormalizeIntensityd,
        Spacingd,
    )  # fmt: skip

    official = Compose([
        LoadImaged(keys=SEQUENCES), EnsureChannelFirstd(keys=SEQUENCES), EnsureTyped(keys=SEQUENCES),
        Spacingd(keys=SEQUENCES, pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
        CenterSpatialCropd(keys=SEQUENCES, roi_size=[16, 16, 16]),
        NormalizeIntensityd(keys=SEQUENCES, nonzero=True, channel_wise=True),
    ])  # fmt: skip
    subjects = scan(cohort, RULES).subjects
    for subject, item in zip(subjects, TumourDataset(subjects, RULES), strict=True):
        expected = official({name: str(path) for name, path in subject.sequences.items()})
        for name in SEQUENCES:
            torch.testing.assert_close(item[name], expected[name].as_tensor(), rtol=0, atol=1e-4)
            loaded, _ = mri.load_subject(subject, 16)
            torch.testing.assert_close(loaded[name].as_tensor(), item[name], rtol=0, atol=1e-5)


def test_zscore_and_regions_as_recorded(golden_dir):
    for path in golden_dir("bm_mae").glob("transforms*.pt"):
        case = torch.load(path, weights_only=True)
        assert torch.equal(mri.regions(case["label"].unsqueeze(0)), case["multi_channel"])
        torch.testing.assert_close(mri.zscore(case["volume"]), case["zscored"], rtol=0, atol=1e-5)
        from monai.transforms import CenterSpatialCrop

        torch.testing.assert_close(CenterSpatialCrop(case["crop_roi"])(case["volume"]).as_tensor(), case["cropped"])


def test_augmentation_is_one_draw_for_all_sequences():
    torch.manual_seed(0)
    volumes, labels = torch.randn(4, 6, 6, 6), (torch.rand(1, 6, 6, 6) > 0.5).to(torch.uint8)
    seen = set()
    for _ in range(40):
        turned, turned_labels = augment(volumes, labels)
        flips = [
            f
            for f in [[], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]]
            if torch.equal(labels.flip(f), turned_labels)
        ]
        assert len(flips) == 1
        seen.add(tuple(flips[0]))
        flipped = volumes.flip(flips[0])
        scale = (turned[0, 0, 0, 0] - turned[0, 0, 0, 1]) / (flipped[0, 0, 0, 0] - flipped[0, 0, 0, 1])
        shift = turned[0, 0, 0, 0] - scale * flipped[0, 0, 0, 0]
        torch.testing.assert_close(turned, flipped * scale + shift, rtol=1e-3, atol=1e-3)
        assert 0.89 < scale < 1.11
        assert abs(shift) < 0.11
    assert len(seen) > 5
    torch.manual_seed(1)
    first = augment(volumes, None)[0]
    torch.manual_seed(1)
    assert torch.equal(first, augment(volumes, None)[0])


@pytest.mark.parametrize("shape", [(20, 22, 18), (12, 22, 18)], ids=["crop", "pad"])
@pytest.mark.parametrize("spacing", [1.0, 1.5])
def test_a_volume_goes_back_to_where_it_came_from(tmp_path, shape, spacing):
    axes = np.meshgrid(*(np.linspace(0, 3, side) for side in shape), indexing="ij")
    voxels = np.zeros(shape, np.int16)
    inner = tuple(slice(2, -2) for _ in shape)
    voxels[inner] = (500 + 300 * np.sin(axes[0] + 2 * axes[1]) * np.cos(axes[2]))[inner]
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = (9, -7, 3)
    path = tmp_path / "S_t1.nii.gz"
    nib.save(nib.Nifti1Image(voxels, affine), path)
    original = mri.read_volume(path, "S")
    prepared = mri.prepare(original, 16, "S", pad=True)
    assert prepared.shape == (1, 16, 16, 16)
    back = mri.put_back(prepared.as_tensor(), original, 16, pad=True)
    assert back.shape == original.shape
    mri.write_nifti(tmp_path / "back.nii.gz", back, back.affine, like=path)
    written = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_allclose(written.affine, affine)
    found, truth = written.get_fdata(), voxels.astype(float)
    if spacing == 1.0:
        inside = found != 0
        np.testing.assert_array_equal(found[inside], truth[inside])
        assert inside.sum() > 0.5 * (truth != 0).sum()
    else:
        middle = tuple(slice(side // 2 - 3, side // 2 + 3) for side in shape)
        np.testing.assert_allclose(found[middle], truth[middle], atol=60)  # resampled there and back


def test_real_volumes_of_nibabel():
    """nibabel's own samples: a T1-like head with an oblique affine, and EPI with two time points, which is refused."""
    folder = Path(nib.__file__).parent / "tests" / "data"
    head = folder / "anatomical.nii"
    volumes, originals = mri.load_subject({"t1": head}, 16)
    image = nib.load(head)
    assert volumes["t1"].shape == (1, 16, 16, 16)
    np.testing.assert_allclose(np.asarray(originals["t1"].affine), image.affine, atol=1e-5)
    back = mri.put_back(volumes["t1"].as_tensor(), originals["t1"], 16)
    assert tuple(back.shape[1:]) == image.shape
    with pytest.raises(ZooError, match="fewer than the 128"):
        mri.load_subject({"t1": head}, 128)
    with pytest.raises(ZooError, match="has 4 axes"):
        mri.load_subject({"t1": folder / "example4d.nii.gz"}, 16)


# ---------------------------------------------------------------------- cache, batches, splits


def test_the_cache_gives_the_same_and_notices_changes(own, tmp_path):
    cache = tmp_path / "cache"
    items = {}
    for kind in ("none", "memory", "disk", "disk"):
        module = data(own, cache=kind, cache_dir=str(cache) if kind == "disk" else None, augment=False)
        module.setup()
        items[kind] = {item["subject"]: item for item in module.train_data}
    for kind in ("memory", "disk"):
        for name, item in items["none"].items():
            torch.testing.assert_close(items[kind][name]["t2"], item["t2"])
    kept = sorted(cache.rglob("*.pt"))
    assert len(kept) == len(items["none"])
    truncate(kept[0])  # a cache file cut short is made again
    first = module.train_data.subjects[0].id
    rewrite(
        file(own, int(first[-5:]), "t2"), lambda v, a: (np.where(v > 0, v // 2 + 7 * (v % 3), 0).astype(np.int16), a)
    )
    module = data(own, cache="disk", cache_dir=str(cache), augment=False)
    module.setup()
    again = {item["subject"]: item for item in module.train_data}
    assert not torch.allclose(again[first]["t2"], items["none"][first]["t2"])
    with pytest.raises(ZooError, match="needs a place"):
        data(own, cache="disk")
    with pytest.raises(ZooError, match="is for data"):
        data(own, cache="memory", cache_dir=str(cache))


def test_batches_and_determinism(cohort):
    for workers in (0, 1):
        runs = []
        for _ in range(2):
            module = data(cohort, num_workers=workers)
            module.setup()
            torch.manual_seed(5)
            runs.append(list(module.train_dataloader()))
        assert all(torch.equal(a["t1"], b["t1"]) and a["subject"] == b["subject"] for a, b in zip(*runs, strict=True))
    batch = runs[0][0]
    assert batch["t1"].shape == (2, 1, 16, 16, 16)
    assert batch["present"].all()
    held_out = [list(b["subject"]) for b in module.val_dataloader()]
    assert held_out == [list(b["subject"]) for b in module.val_dataloader()]


def test_given_sides_exclusion_and_few_subjects(cohort, tmp_path):
    root = tmp_path / "brats"
    for index in range(6):
        shutil.copytree(
            file(cohort, index, "t1").parent, root / ("val" if index < 2 else "archive") / f"BraTS2021_{index:05d}"
        )
    (tmp_path / "out.csv").write_text("MRI,other\nsomewhere/BraTS2021_00003,1\n")
    module = data(root, exclude=str(tmp_path / "out.csv"))
    module.setup()
    assert [s.id[-1] for s in module.train_data.subjects] == ["2", "4", "5"]
    assert [s.id[-1] for s in module.val_data.subjects] == ["0", "1"]
    few = data(root, train_subjects=2)
    few.setup()
    assert len(few.train_data) == 2
    shutil.copytree(root / "val" / "BraTS2021_00000", root / "archive" / "BraTS2021_00000")
    with pytest.raises(ZooError, match="BraTS2021_00000 is in archive and in val"):
        data(root).setup()


def test_whole_volumes_for_sliding_windows(cohort):
    module = data(cohort, segmentation=True, whole_val=True)
    module.setup()
    batch = next(iter(module.val_dataloader()))
    assert batch["t1"].shape == (1, 1, *SHAPE)
    assert batch["seg"].shape == (1, 3, *SHAPE)
    assert next(iter(module.train_dataloader()))["t1"].shape == (2, 1, 16, 16, 16)


def test_one_sequence_is_enough(own):
    for kind in ("t1ce", "t2", "flair"):
        for path in own.rglob(f"*_{kind}.nii.gz"):
            path.unlink()
    module = data(own, modalities=["t1"])
    module.setup()
    assert set(module.train_data[0]) == {"subject", "present", "t1"}
    with pytest.raises(ZooError, match="one or more of t1"):
        data(own, modalities=["t1", "pet"])


def test_labelled_dataloaders(cohort):
    module = BMMAEDataModule(str(cohort), image_size=16, batch_size=2, num_workers=0, val_fraction=0.34)
    module.setup()
    train, val = module.labelled_dataloaders(2, batch_size=1)
    assert len(train.dataset) == 2
    assert next(iter(val))["seg"].shape == (1, 3, 16, 16, 16)


# ---------------------------------------------------------------------- tables


def table(root: Path, **arguments) -> TumourTableDataModule:
    defaults = dict(image_size=16, num_workers=0, folds=2)
    return TumourTableDataModule(str(root), str(root / "subjects.csv"), **(defaults | arguments))


def test_labels_in_the_order_of_the_file(tmp_path):
    root = write_cohort(tmp_path / "c", 8, SHAPE, enhancing_share=0.5)
    rows = read_table(root / "subjects.csv", ["project_id"])
    module = table(root, label="project_id", fold=1)
    module.setup()
    assert module.classes == list(dict.fromkeys(row["project_id"] for row in rows))
    batch = next(iter(module.val_dataloader()))
    truth = {row["subject"]: module.classes.index(row["project_id"]) for row in rows}
    assert batch["label"].tolist() == [truth[subject] for subject in batch["subject"]]
    other = table(root, label="project_id", fold=0)
    other.setup()
    assert {s.id for s in other.val_data.subjects}.isdisjoint({s.id for s in module.val_data.subjects})


def test_folds_are_scikit_learns():
    from sklearn.model_selection import StratifiedKFold

    strata = np.random.default_rng(0).integers(0, 3, 40)
    expected = list(StratifiedKFold(5, shuffle=True, random_state=1999).split(strata, strata))
    for fold in range(5):
        for ours, theirs in zip(fold_indices(strata, 5, fold, 1999), expected[fold], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_time_bins_do_not_see_the_held_out_unless_asked(tmp_path):
    root = write_cohort(tmp_path / "c", 12, SHAPE, seed=1)
    modules = {cuts: table(root, time="time", event="event", bins=3, cuts_from=cuts) for cuts in ("train", "all")}
    for module in modules.values():
        module.setup()
    rows = read_table(root / "subjects.csv", ["time", "event"])
    inside = {s.id for s in modules["train"].train_data.subjects}
    longest = max(float(row["time"]) for row in rows if row["subject"] in inside)
    assert modules["train"].cuts[-1] == pytest.approx(longest)
    assert modules["all"].cuts[-1] == pytest.approx(max(float(row["time"]) for row in rows))
    batch = next(iter(modules["train"].val_dataloader()))
    assert batch["time_index"].max() < 3
    assert set(batch) >= {"time", "event", "event_seen", "time_index"}


@pytest.mark.parametrize(("change", "arguments", "message"), [
    (lambda t: t, {}, "Give data.label"),
    (lambda t: t, {"label": "grade"}, "no column 'grade'"),
    (lambda t: t, {"label": "subject"}, "two different values, not 6"),
    (lambda t: t, {"time": "IDH", "event": "event"}, "hold numbers"),
    (lambda t: t, {"time": "time", "event": "time"}, "1 .death. and 0"),
    (lambda t: t, {"label": "event", "fold": 2}, "fold is one of 0 to 1"),
    (lambda t: t.replace("subject", "patient"), {"label": "event"}, "no column of subject ids"),
    (lambda t: t + "BraTS2021_00000,GBM,WT,1,1\n", {"label": "event"}, "BraTS2021_00000 in two rows"),
    (lambda t: t + "BraTS2021_00099,GBM,WT,1,1\n", {"label": "event"}, "BraTS2021_00099 is in the table, but"),
])  # fmt: skip
def test_tables_that_do_not_fit(own, change, arguments, message):
    path = own / "subjects.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(ZooError, match=message):
        table(own, **arguments).setup()


# ---------------------------------------------------------------------- the made-up cohort


def test_the_cohort_is_what_it_says(cohort):
    assert write_cohort(cohort, 6, SHAPE, seed=3) == cohort  # nothing is written twice
    with pytest.raises(ZooError, match="is not this cohort"):
        write_cohort(cohort, 7, SHAPE, seed=3)
    image = nib.load(file(cohort, 0, "t1"))
    assert image.get_data_dtype() == np.int16
    assert image.shape == SHAPE
    sequences, labels = make_subject(5, (48, 48, 40))
    brain = sequences["t1"] > 0
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    assert not any(volume[~brain].any() for volume in sequences.values())
    rim, healthy = labels == 4, brain & (labels == 0)
    assert sequences["t1ce"][rim].mean() > 1.3 * sequences["t1ce"][healthy].mean()
    assert sequences["t1"][labels == 2].mean() < sequences["t1"][healthy].mean()
    assert sequences["flair"][labels == 2].mean() > 1.3 * sequences["flair"][healthy].mean()
    assert set(CONTRAST) == set(SEQUENCES)
    again, _ = make_subject(5, (48, 48, 40))
    assert all(np.array_equal(again[name], sequences[name]) for name in SEQUENCES)
    assert 4 not in make_subject(5, (48, 48, 40), enhancing=False)[1]
