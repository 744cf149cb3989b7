"""Where images come from, and what is said when something is wrong with them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.base import normalize
from datamodules.droppos import DropPosDataModule
from datamodules.images import ImageDataset, open_images
from datamodules.transforms import RandomResizedCropFlip, ResizeCenterCrop, random_crop_box
from zoo.errors import ZooError
from zoo.pixels import to_rgb


def picture(width=40, height=30, mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def tree(root, splits=("train", "val"), classes=("cat", "dog"), count=3, suffix="png"):
    for split in splits:
        for name in classes:
            folder = root / split / name if split else root / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(seed=index).save(folder / f"{index}.{suffix}")
    return root


def test_a_loop_over_the_images_ends():
    dataset = open_images("digits", "val", val_fraction=0.1)
    assert sum(1 for _ in dataset) == len(dataset)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_digits_split_is_stratified_and_seeded():
    train, val = open_images("digits", "train", val_fraction=0.25), open_images("digits", "val", val_fraction=0.25)
    assert len(train) + len(val) == 1797
    assert np.bincount(val.labels).min() >= 40
    assert open_images("digits", "val", val_fraction=0.25).names == val.names
    assert open_images("digits", "val", val_fraction=0.25, seed=1).names != val.names
    assert not set(train.names) & set(val.names)
    assert val[0][0].mode == "RGB"


def test_image_folder_with_and_without_splits(tmp_path):
    data = open_images(tree(tmp_path / "a"), "val")
    assert (len(data), data.classes, data.labels) == (6, ["cat", "dog"], [0, 0, 0, 1, 1, 1])
    flat = tree(tmp_path / "b", splits=("",), count=10)
    train, val = open_images(flat, "train", val_fraction=0.2), open_images(flat, "val", val_fraction=0.2)
    assert (len(train), len(val)) == (16, 4)
    assert sorted(val.labels) == [0, 0, 1, 1]


def test_classes_of_the_validation_folder_follow_the_training_folder(tmp_path):
    tree(tmp_path, splits=("train",), classes=("ant", "bee", "cow"))
    tree(tmp_path / "x", splits=("val",), classes=("cow",))
    (tmp_path / "x" / "val").rename(tmp_path / "val")
    assert set(open_images(tmp_path, "val").labels) == {2}


def test_official_lists_with_blanks_in_names_and_windows_line_ends(tmp_path):
    tree(tmp_path, splits=("train",), classes=("a b",), count=2)
    (tmp_path / "train.txt").write_bytes(b"a b/0.png 7\r\n\r\na b/1.png 3\r\n")
    data = open_images(tmp_path, "train")
    assert data.labels == [7, 3]
    assert data[1][0].size == (40, 30)
    (tmp_path / "train.txt").write_text("a b/0.png seven\n")
    with pytest.raises(ZooError, match=r"train\.txt, line 1"):
        open_images(tmp_path, "train")


def test_parquet_as_hugging_face_stores_images(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for index in range(4):
        buffer = io.BytesIO()
        picture(seed=index).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{index}.png"}, "label": index % 2})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    data = open_images(tmp_path, "train")
    assert data.labels == [0, 1, 0, 1]
    assert np.array_equal(np.array(data[2][0]), np.array(picture(seed=2)))
    with pytest.raises(ZooError, match=r"none named val\.parquet"):
        open_images(tmp_path, "val")


def test_sixteen_bit_greys_are_scaled_and_not_cut_off(tmp_path):
    from zoo.nn.images import preprocess_images

    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    found = ImageDataset(lambda _: Image.open(tmp_path / "x.png"), ["x"], [0], ["x"])[0][0]
    np.testing.assert_array_equal(np.asarray(found)[..., 0], grey // 257)
    views = preprocess_images(tmp_path / "x.png", 64, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(views[0, 1].numpy(), grey / 65535, atol=1 / 255)
    eight = Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8))  # "I" that needs no scaling
    np.testing.assert_array_equal(np.asarray(to_rgb(eight))[..., 2], np.arange(64).reshape(8, 8))


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGBA", "P"])
def test_odd_modes_become_rgb(tmp_path, mode):
    (tmp_path / "train" / "c").mkdir(parents=True)
    name = "x.JPEG" if mode in ("CMYK", "L") else "x.png"
    picture(mode=mode).save(tmp_path / "train" / "c" / name)
    image, _ = open_images(tmp_path, "train")[0]
    assert image.mode == "RGB"


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ZooError, match="no data folder"):
        open_images(tmp_path / "nothing", "train")
    with pytest.raises(ZooError, match=r"no class subfolders \(nothing in it\)"):
        open_images(tmp_path, "train")
    picture().save(tmp_path / "loose.png")
    with pytest.raises(ZooError, match=r"no class subfolders \(1 images directly in it\)"):
        open_images(tmp_path, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="No images under"):
        open_images(tmp_path, "train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_are_named_or_skipped_and_counted(tmp_path, num_workers):
    tree(tmp_path, splits=("train",), suffix="jpg")
    broken = tmp_path / "train" / "cat" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    view = RandomResizedCropFlip(16)
    strict = DataLoader(open_images(tmp_path, "train", transform=view), batch_size=6, num_workers=num_workers)
    with pytest.raises(ZooError) as error:
        next(iter(strict))
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)
    data = open_images(tmp_path, "train", transform=view, on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped") if num_workers == 0 else _nothing():
        images, labels = next(iter(DataLoader(data, batch_size=6, num_workers=num_workers)))
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.num_skipped == 1


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_crop_boxes_have_the_area_and_ratio_asked_for():
    torch.manual_seed(0)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = random_crop_box(500, 375, (0.2, 1.0))
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        areas.append((right - left) * (bottom - top) / (500 * 375))
        ratios.append((right - left) / (bottom - top))
    assert min(areas) > 0.19
    assert max(areas) > 0.95
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    # torchvision draws from the same distribution.
    from torchvision.transforms import RandomResizedCrop

    theirs = [RandomResizedCrop.get_params(picture(500, 375), [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    assert np.mean(areas) == pytest.approx(np.mean([h * w / (500 * 375) for _, _, h, w in theirs]), abs=0.02)


def test_reduced_decoding_shows_the_same_picture(tmp_path):
    smooth = Image.fromarray(np.linspace(0, 255, 1200 * 1600 * 3).reshape(1200, 1600, 3).astype(np.uint8))
    path = tmp_path / "train" / "c" / "big.jpg"
    path.parent.mkdir(parents=True)
    smooth.resize((1600, 1200)).save(path, quality=95)
    crops = []
    for fast in (True, False):
        torch.manual_seed(3)
        crops.append(open_images(tmp_path, "train", transform=RandomResizedCropFlip(64, fast_decode=fast))[0][0])
    assert (crops[0].float() - crops[1].float()).abs().mean() < 2


def test_training_crop_is_pillows_within_a_grey_level():
    image = Image.fromarray(np.asarray(picture(120, 90).resize((500, 375), Image.Resampling.BICUBIC)))
    for seed in range(5):
        torch.manual_seed(seed)
        ours = RandomResizedCropFlip(224, flip=0.0)(image)
        torch.manual_seed(seed)
        crop = image.crop(random_crop_box(500, 375, (0.2, 1.0)))
        theirs = torch.from_numpy(np.array(crop.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1)
        assert (ours.int() - theirs.int()).abs().max() <= 2
    torch.manual_seed(0)
    flipped = RandomResizedCropFlip(224, flip=1.0)(image)
    torch.manual_seed(0)
    assert torch.equal(flipped, RandomResizedCropFlip(224, flip=0.0)(image).flip(-1))


def test_evaluation_view_equals_resize_and_centre_crop():
    from torchvision.transforms import v2

    for width, height in ((500, 375), (300, 451), (224, 224)):
        image = picture(width, height)
        ours = ResizeCenterCrop(224)(image).float()
        resized = v2.functional.resize(image, 256, v2.InterpolationMode.BICUBIC)
        theirs = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, 224)).float()
        assert torch.equal(ours, theirs), (width, height)


def test_normalisation_is_the_usual_one():
    from torchvision.transforms.v2 import functional as F

    images = torch.randint(0, 255, (2, 3, 5, 5), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(normalize(images, mean, std), F.normalize(images / 255, mean, std))


def test_datamodule_batches_and_short_data():
    data = DropPosDataModule("digits", image_size=16, batch_size=32, num_workers=0)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch[0].shape == (32, 3, 16, 16)
    assert batch[0].dtype == torch.float32
    assert data.classes == [str(digit) for digit in range(10)]
    train, held_out = data.labelled_dataloaders()
    assert len(train.dataset) + len(held_out.dataset) == 1797
    with pytest.raises(ZooError, match=r"lower data\.batch_size"):
        DropPosDataModule("digits", batch_size=4096, num_workers=0).loader(train.dataset, train=True)
