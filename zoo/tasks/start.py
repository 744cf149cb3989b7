"""Where a task starts from, and what has to agree before it runs."""

from __future__ import annotations

import contextvars
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from zoo.errors import ZooError
from zoo.loading import build, load
from zoo.module import ZooModule, own_class


def start_model(backbone: str | dict[str, Any], pretrained: bool = True) -> ZooModule:
    """The model behind a zoo name, a manifest, a checkpoint or a run folder; with random weights unless `pretrained`.

    A dict `{class_path, init_args}` gives the same module with random weights: a task's checkpoint holds one in place
    of the name, since its own state dict fills the weights.
    """
    # LightningCLI announces the task's arguments in a context variable, and the inner module's save_hyperparameters
    # would take them for its own: build it in a context that knows nothing of the task.
    return contextvars.Context().run(_start_model, backbone, pretrained)


def _start_model(backbone: str | dict[str, Any], pretrained: bool) -> ZooModule:
    if isinstance(backbone, dict):
        # `build` refuses classes that are no ZooModule: the class path comes out of a checkpoint.
        return build(backbone["class_path"], backbone.get("init_args", {}), "The backbone of this checkpoint").eval()
    return load(backbone, pretrained=pretrained)


def describe_model(model: ZooModule) -> dict[str, Any]:
    """What `start_model` rebuilds `model` from."""
    init_args = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    cls = own_class(model)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


def image_size_of(model: ZooModule) -> int | None:
    """Side in pixels of the images that a model takes; None if it does not say."""
    return getattr(model, "image_size", None) or model.hparams.get("image_size")


def check_image_size(task: LightningModule, needed: int | None, advice: str = "") -> None:
    """Raises `ZooError` if the data gives images of another size than the network takes."""
    data = getattr(task.trainer, "datamodule", None)
    given = data.hparams.get("image_size") if data is not None else None
    if None not in (given, needed) and given != needed:
        raise ZooError(
            f"The backbone takes images of {needed} pixels, the data gives {given}: set data.image_size to {needed}"
            f"{advice}."
        )


def classes_in_data(task: LightningModule) -> int:
    """How many classes the trainer's data has. Raises `ZooError` if it does not say."""
    count = getattr(getattr(task.trainer, "datamodule", None), "num_classes", None)
    if count is None:
        raise ZooError("The data does not say how many classes there are: give model.num_classes a value.")
    return count


def weights_of_classes(task: LightningModule, given: Any, num_classes: int) -> Tensor | None:
    """(num_classes,) weights of the classes in a loss, with mean 1 over the training samples for "balanced".

    Args:
        given: None, a list, or "balanced": n / (classes * samples of the class), as scikit-learn has it. The data says
            with `class_counts()` how many samples there are.

    Raises `ZooError` for anything else, for another number of weights, and for a class without a sample.
    """
    if given is None:
        return None
    if given == "balanced":
        counts = getattr(getattr(task.trainer, "datamodule", None), "class_counts", lambda: None)()
        if counts is None:
            raise ZooError("The data does not count its classes: give model.class_weights a list of numbers.")
        numbers = torch.tensor(counts, dtype=torch.float32)
        if len(numbers) != num_classes or not bool(numbers.all()):
            raise ZooError(
                "A class has no training sample, so it has no balanced weight: give model.class_weights a list."
            )
        return numbers.sum() / (num_classes * numbers)
    try:
        weights = torch.tensor([float(value) for value in given])
    except (TypeError, ValueError) as error:
        raise ZooError(f"model.class_weights is balanced or a list of numbers, not {given!r}.") from error
    if len(weights) != num_classes or bool((weights < 0).any()) or not bool(weights.any()):
        raise ZooError(
            f"model.class_weights has {len(weights)} numbers; there are {num_classes} classes, none below 0."
        )
    return weights
