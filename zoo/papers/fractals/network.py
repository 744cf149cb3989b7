"""The network: timm's ResNet, started as torchvision starts its own."""

from __future__ import annotations

import timm
from timm.models.resnet import ResNet

from zoo.errors import ZooError, did_you_mean


def build_resnet(name: str, num_classes: int) -> ResNet:
    """A ResNet with random weights under torchvision's parameter names (`fc` is the classifier).

    timm would start the last normalisation of each block at zero, torchvision and with it the paper starts it at one.
    """
    names = timm.list_models("*resne*", module="resnet")
    if name not in names:
        raise ZooError(f"There is no ResNet {name!r} in timm.{did_you_mean(name, names)}")
    return timm.create_model(name, num_classes=num_classes, zero_init_last=False)
