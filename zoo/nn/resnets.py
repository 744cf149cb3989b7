"""timm's ResNets, started as torchvision starts its own."""

from __future__ import annotations

import timm
from timm.models.resnet import ResNet

from zoo.errors import ZooError, did_you_mean

_CHANNELS = (64, 128, 256, 512)


def build_resnet(name: str, num_classes: int, width: float = 1.0) -> ResNet:
    """A ResNet with random weights under torchvision's parameter names (`fc` is the classifier).

    `width` multiplies the channels of the four stages: half of them are a quarter of the computing. timm would start
    the last normalisation of each block at zero, torchvision and with it the paper starts it at one.
    """
    names = timm.list_models("*resne*", module="resnet")
    if name not in names:
        raise ZooError(f"There is no ResNet {name!r} in timm.{did_you_mean(name, names)}")
    if not 0 < width <= 4:
        raise ZooError(f"width is a factor above 0 and up to 4, not {width}.")
    channels = {} if width == 1 else {"channels": tuple(max(8, round(count * width)) for count in _CHANNELS)}
    return timm.create_model(name, num_classes=num_classes, zero_init_last=False, **channels)
