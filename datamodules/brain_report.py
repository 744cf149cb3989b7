"""The table that a brain-tumour data module prints: what was found, what is used and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.nn.subjects import SEQUENCES, count_names

if TYPE_CHECKING:
    from datamodules.brain_tumour import TumourDataModule

_NAMES = {"brats": "BraTS 2018-2021", "brats-gli": "BraTS 2023/24 glioma", "upenn": "UPenn-GBM"}


def print_found(data: TumourDataModule, train: int, val: int) -> None:
    """Prints one table of the subjects found by `data` and how many are on each side of the split."""
    subjects = [subject for cohort in data.cohorts for subject in cohort.subjects]
    table = Table(title=f"MRI in {data.root}", box=box.SIMPLE, show_header=False, title_justify="left")
    names = ", ".join(f"{_NAMES[name]}: {count}" for name, count in count_names(subjects).items())
    table.add_row("subjects", f"{len(subjects)} of {len({s.patient for s in subjects})} patients ({names})")
    counts = ", ".join(f"{name} {sum(name in s.sequences for s in subjects)}" for name in SEQUENCES)
    table.add_row("sequences", f"{counts}; segmentations {sum(s.seg is not None for s in subjects)}")
    table.add_row("used", f"{', '.join(data.rules.modalities)}; {train} for training, {val} held out")
    if resampled := sum(cohort.resampled for cohort in data.cohorts):
        table.add_row("resampled", f"{resampled} subjects have voxels of another size: brought to 1 mm")
    if data.rules.pad:
        table.add_row("padded", f"axes shorter than {data.rules.size} voxels are filled up with zeros")
    dropped = [entry for cohort in data.cohorts for entry in cohort.dropped]
    if dropped:
        table.add_row("left out", f"{len(dropped)}, such as {dropped[0][0]} ({dropped[0][1]})")
    bad = [reason for cohort in data.cohorts for reason in cohort.bad]
    if bad:
        table.add_row("skipped", f"{len(bad)}, such as {bad[0]}")
    strays = [path for cohort in data.cohorts for path in cohort.strays]
    if strays:
        table.add_row("other names", f"{len(strays)} NIfTI files were passed over, such as {strays[0].name}")
    h = data.hparams
    if h.cache != "none":
        size = len(data.rules.modalities) * h.image_size**3 * 2 * (train + val) / 2**30
        table.add_row("cache", f"about {size:.1f} GiB {'in memory' if h.cache == 'memory' else f'in {h.cache_dir}'}")
    Console().print(table)
