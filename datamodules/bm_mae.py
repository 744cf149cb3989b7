"""Data for BM-MAE's pre-training: all four sequences of each subject. Masks are drawn by the model, on the device."""

from __future__ import annotations

from torch.utils.data import DataLoader

from datamodules.brain_tumour import TumourDataModule
from zoo.errors import ZooError


class BMMAEDataModule(TumourDataModule):
    """`TumourDataModule` as pre-training takes it; the segmentation is not read unless asked for."""

    def raw_sample(self) -> dict[str, str]:
        """The files of the first held-out subject."""
        self.setup()
        assert self.val_data is not None
        return {name: str(path) for name, path in self.val_data.subjects[0].sequences.items()}

    def labelled_dataloaders(self, train_subjects: int, batch_size: int = 2) -> tuple[DataLoader, DataLoader]:
        """A few labelled training subjects (augmented), and the held-out ones, with their segmentations."""
        given = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        few = TumourDataModule(**{
            **given, "segmentation": True, "train_subjects": train_subjects, "batch_size": batch_size, "num_workers": 0,
        })  # fmt: skip
        few.report = lambda train, val: None  # type: ignore[method-assign]  # printed once already
        few.setup()
        if train_subjects > len(few.train_data):  # type: ignore[arg-type]
            raise ZooError(f"There are {len(few.train_data)} training subjects, not {train_subjects}.")  # type: ignore[arg-type]
        return few.train_dataloader(), few.val_dataloader()
