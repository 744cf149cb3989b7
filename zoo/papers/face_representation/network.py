"""The networks: timm's ResNet under torchvision's names, and the small heads of the three methods."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import timm
from timm.models.resnet import ResNet
from torch import Tensor, nn

from zoo.errors import ZooError, did_you_mean

OPTIONS = ("layers", "channels", "base_width", "stem_width")


def build_resnet(network: str = "resnet50", options: Mapping[str, Any] | None = None) -> ResNet:
    """A ResNet without classifier, random weights; the last norm of each block starts at one, as torchvision has it.

    Args:
        network: name of a timm ResNet.
        options: for narrower or shorter ones: `layers` (blocks of each stage), `channels` (planes of each stage),
            `base_width` (inner width of a bottleneck = planes x base_width / 64) and `stem_width`.

    Raises `ZooError` for another name or option.
    """
    names = timm.list_models("*resne*", module="resnet")
    if network not in names:
        raise ZooError(f"There is no ResNet {network!r} in timm.{did_you_mean(network, names)}")
    options = dict(options or {})
    for name in options:
        if name not in OPTIONS:
            raise ZooError(
                f"network_options has no {name!r}.{did_you_mean(name, OPTIONS)} It takes {', '.join(OPTIONS)}."
            )
    stem = options.pop("stem_width", 64)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    model = timm.create_model(network, num_classes=0, zero_init_last=False, **options)
    return model if stem == 64 else _narrow_stem(model, stem)


def _narrow_stem(model: ResNet, width: int) -> ResNet:
    """timm's plain stem has 64 channels; gives it `width`, and the first block as many inputs."""
    block = model.layer1[0]
    if not isinstance(model.conv1, nn.Conv2d):
        raise ZooError("network_options.stem_width is for ResNets with the plain 7x7 stem.")
    model.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    old = block.conv1
    block.conv1 = nn.Conv2d(width, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    out = model.feature_info[1]["num_chs"]
    if width == out:
        block.downsample = None
    else:
        block.downsample = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))
    model.feature_info[0]["num_chs"] = width
    model.init_weights(zero_init_last=False)
    return model


def mlp(sizes: list[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them: (B, sizes[0]) to (B, sizes[-1]).

    `last_norm` puts a batch norm at the end too (SimSiam's projector).
    """
    layers: list[nn.Module] = []
    for index, (wide, narrow) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(wide, narrow))
        if index < len(sizes) - 2:
            layers += [nn.BatchNorm1d(narrow), nn.ReLU(inplace=True)]
    if last_norm:
        layers.append(nn.BatchNorm1d(sizes[-1]))
    return nn.Sequential(*layers)


def pyramid(backbone: ResNet, images: Tensor) -> list[Tensor]:
    """The maps of the four stages, C2 to C5: (B, C, H / 4, W / 4) to (B, 8 C, H / 32, W / 32)."""
    x = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(images))))
    maps = []
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = stage(x)
        maps.append(x)
    return maps
