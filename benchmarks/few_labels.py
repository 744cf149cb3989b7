"""What pre-trained weights are worth when labels are few: k-NN, linear probe and fine-tuning beside from scratch.

    python benchmarks/few_labels.py droppos-vit-cifar10 --root CIFAR10_FOLDER --json out.json

Each share of the labels is drawn stratified by the seed; a smaller share lies within a larger one. "scratch" is
the same network with random weights: its untrained features for the probes, training from the start for fine-tuning
with the same epochs (0 for none) and augmentation. A ViT gets AdamW with the same peak learning rate on both sides,
without layer-wise decay from scratch, since that is meant for layers that are already good. A ResNet gets SGD, by
default with Anderson & Farrell's rates: 0.015 and ten times that for the classifier, 0.15 throughout from scratch.
With `--lrs` both sides choose their rate from the same ones, by the accuracy on 2,000 training images outside of
the labelled ones, and a ResNet's classifier learns as fast as the rest. With all labels there are none left to choose
on: then each side keeps what it chose for the share before.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from timm.models.resnet import ResNet
from torch.utils.data import DataLoader, Subset

import zoo
from datamodules.image_classification import ImageClassificationDataModule
from datamodules.images import few_label_subset
from zoo.module import ZooModule
from zoo.tasks import ImageClassification, ResNetClassification
from zoo.tasks.probes import Features, extract_features, knn_accuracy, linear_probe_accuracy

CHOOSE_ON = 2000
"""Images that `--lrs` are compared on."""


def data(args: argparse.Namespace, fraction: float, image_size: int, augment: str) -> ImageClassificationDataModule:
    own = {key: args.normalisation[key] for key in ("mean", "std") if key in args.normalisation}
    return ImageClassificationDataModule(
        args.root, image_size=image_size, batch_size=args.batch, train_augment=augment, crop_scale=(0.5, 1.0),
        label_fraction=fraction, eval_crop_pct=1.0, num_workers=args.workers, seed=args.seed, **own,
    )  # fmt: skip


def features(
    args: argparse.Namespace, model: ZooModule, source: ImageClassificationDataModule
) -> tuple[Features, Features]:
    def represent(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision.startswith("bf16")):
            return model(source.on_after_batch_transfer((images, None), 0)[0])

    train, held_out = source.labelled_dataloaders()
    return extract_features(represent, train), extract_features(represent, held_out)


def vit_task(args: argparse.Namespace, side: str, epochs: int, lr: float) -> ImageClassification:
    common = dict(
        lr=lr,
        mixup=0.0,
        cutmix=0.0,
        drop_path=0.0,
        warmup_epochs=epochs / 10,
    )
    task = ImageClassification(backbone=args.backbone, layer_decay=0.75, **common)
    return task if side == "pretrained" else ImageClassification(network=task.network, layer_decay=1.0, **common)


def resnet_task(args: argparse.Namespace, side: str, lr: float) -> ResNetClassification:
    factor = {"head_lr_factor": 1.0} if args.lrs else {}
    task = ResNetClassification(backbone=args.backbone, lr=lr, **factor)
    if side == "pretrained":
        return task
    scratch = dict(lr=lr, weight_decay=1e-4, head_lr_factor=1.0)
    return ResNetClassification(network=task.network, width=task.width, image_size=task.image_size, **scratch)


def finetune(args: argparse.Namespace, side: str, fraction: float, epochs: int, lr: float) -> tuple[float, float]:
    """Accuracy on the held-out images, and on training images without a label (0 where all have one)."""
    seed_everything(args.seed, verbose=False)
    task = resnet_task(args, side, lr) if args.resnet else vit_task(args, side, epochs, lr)
    source = data(args, fraction, task.image_size, "crop")
    trainer = Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=args.progress, check_val_every_n_epoch=epochs, num_sanity_val_steps=0,
        precision=args.precision,
    )  # fmt: skip
    trainer.fit(task, source)
    accuracy = float(trainer.callback_metrics["val/acc1"])
    if fraction == 1 or not args.lrs:
        return accuracy, 0.0
    whole = data(args, 1.0, task.image_size, "none")
    whole.setup()
    labels = whole.train_data.labels
    rest = np.setdiff1d(np.arange(len(labels)), few_label_subset(labels, fraction, args.seed))
    rest = np.random.default_rng(args.seed).permutation(rest)[:CHOOSE_ON]
    loader = DataLoader(Subset(whole.train_data, rest.tolist()), args.batch)
    task.eval()
    right = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision.startswith("bf16")):
        for images, truth in loader:
            guesses = task.classify(source.on_after_batch_transfer((images, None), 0)[0]).argmax(dim=1)
            right += int((guesses == truth).sum())
    return accuracy, right / len(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="zoo name, checkpoint or run folder")
    parser.add_argument("--root", required=True, help="labelled images, as datamodules.images takes them")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[40, 8, 1], help="of fine-tuning, one a fraction; 0: none"
    )
    parser.add_argument("--lr", type=float, help="of fine-tuning; by default 1e-3 for a ViT, 0.015 for a ResNet")
    parser.add_argument("--scratch-lr", type=float, help="from scratch; by default 1e-3 for a ViT, 0.15 for a ResNet")
    parser.add_argument("--lrs", type=float, nargs="+", help="rates that either side chooses from, instead of the two")
    parser.add_argument("--precision", default="32-true", help="of the Trainer; bf16-mixed where that is faster")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["pretrained", "scratch"], help="one side alone")
    parser.add_argument("--no-finetune", action="store_true")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if len(args.epochs) != len(args.fractions):
        parser.error("give as many --epochs as --fractions")

    pretrained = zoo.load(args.backbone)
    args.resnet = isinstance(pretrained.backbone, ResNet)
    defaults = (0.015, 0.15) if args.resnet else (1e-3, 1e-3)
    args.lr, args.scratch_lr = (
        given or default for given, default in zip((args.lr, args.scratch_lr), defaults, strict=True)
    )
    args.normalisation = pretrained.hparams if args.resnet else {}
    seed_everything(args.seed, verbose=False)
    scratch = type(pretrained)(**{k: v for k, v in pretrained.hparams.items() if not k.startswith("_")}).eval()
    sides = {"pretrained": pretrained, "scratch": scratch}
    rows: list[dict] = []
    for side, model in sides.items():
        if args.only not in (None, side):
            continue
        rates = args.lrs or [args.lr if side == "pretrained" else args.scratch_lr]
        best = rates[0]
        source = data(args, max(args.fractions), model.hparams.image_size, "none")
        (train_x, train_y), held_out = features(args, model, source)
        labels = source.train_data.labels
        there = few_label_subset(labels, max(args.fractions), args.seed)
        for fraction, epochs in zip(args.fractions, args.epochs, strict=True):
            chosen = np.searchsorted(there, few_label_subset(labels, fraction, args.seed))
            subset = (train_x[chosen], train_y[chosen])
            row = {"weights": side, "labels": fraction, "knn": knn_accuracy(subset, held_out)}
            row["linear"] = linear_probe_accuracy(subset, held_out, max_iter=300)
            if epochs and not args.no_finetune:
                started = time.time()
                now = rates if fraction < 1 else [best]
                tried = {lr: finetune(args, side, fraction, epochs, lr) for lr in now}
                best = max(tried, key=lambda lr: tried[lr][1])
                row["finetune"] = tried[best][0]
                row |= {"finetune_epochs": epochs, "finetune_seconds": round(time.time() - started), "lr": best}
                row["tried"] = {
                    lr: dict(zip(("held out", "chosen by"), both, strict=True)) for lr, both in tried.items()
                }
            rows.append(row)
            print(json.dumps(row), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2) + "\n")
    table = Table(title=f"{args.backbone} on {args.root}, seed {args.seed}")
    for column in ("weights", "labels", "k-NN", "linear probe", "fine-tuned", "epochs"):
        table.add_column(column)
    for row in rows:
        tuned = f"{row['finetune']:.1%}" if "finetune" in row else "-"
        table.add_row(row["weights"], f"{row['labels']:.0%}", f"{row['knn']:.1%}", f"{row['linear']:.1%}", tuned,
                      str(row.get("finetune_epochs", "-")))  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
