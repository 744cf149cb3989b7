"""Networks for semantic segmentation on pre-trained backbones: a U-Net on timm's ResNets, UPerNet on timm's ViTs.

B: pictures, C: classes, H, W: pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.extras import require
from zoo.module import full_precision

IGNORE = 255
"""Label of pixels that do not count, in batches of any data."""
_UNET_WIDTHS = (256, 128, 64, 32, 16)


class Segmenter(nn.Module):
    """`encoder`, `decoder` and `segmentation_head`: pictures (B, 3, H, W) to logits (B, C, H, W)."""

    stride: int
    encoder: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class UNet(Segmenter):
    """A U-Net whose encoder is a timm ResNet of any depth and width (Ronneberger et al. 2015).

    Names and numbers are those of segmentation_models_pytorch's `Unet`, whose decoder it has. H and W are multiples
    of `stride`, 32.
    """

    def __init__(self, encoder: ResNet, classes: int) -> None:
        super().__init__()
        _require()
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        encoder.reset_classifier(0)
        self.encoder, self.stride = encoder, 32
        widths = [3, *(int(info["num_chs"]) for info in encoder.feature_info)]
        self.decoder = UnetDecoder(widths, _UNET_WIDTHS)
        self.segmentation_head = SegmentationHead(_UNET_WIDTHS[-1], classes)
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder.forward_intermediates(images, intermediates_only=True)
        return self.segmentation_head(self.decoder([images, *maps]))


class ViTUPerNet(Segmenter):
    """UPerNet (Xiao et al. 2018) on a timm ViT, as BEiT and MAE transfer to ADE20K.

    The maps after each quarter of the blocks are brought to 1/4, 1/2, 1 and 2 patch sizes a step; where a quarter of a
    patch is less than two pixels, to two pixels a step and what is twice, four and eight times as coarse. H and W are
    those that `image_size` says: positions are interpolated to it.

    Args:
        encoder: the ViT; its classifier and final norm are dropped.
        image_size: H and W, a multiple of the patch size. width: channels of the decoder.
    """

    def __init__(self, encoder: VisionTransformer, classes: int, image_size: int, width: int = 256) -> None:
        super().__init__()
        _require()
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        patch, depth, dim = encoder.patch_embed.patch_size[0], len(encoder.blocks), encoder.embed_dim
        if image_size % patch:
            raise ZooError(f"image_size {image_size} is not a multiple of the backbone's patch size {patch}.")
        if patch < 2 or patch & (patch - 1):
            raise ZooError(f"UPerNet takes patches of 2, 4, 8, 16 or 32 pixels, not of {patch}.")
        if depth < 4:
            raise ZooError(f"UPerNet looks at four depths of the backbone, which has {depth} blocks only.")
        encoder.reset_classifier(0)
        encoder.norm = nn.Identity()  # each map is normalised by the decoder
        encoder.fc_norm = nn.Identity()
        encoder.set_input_size(img_size=(image_size, image_size))
        self.encoder, self.stride = encoder, image_size
        self.depths = [depth * k // 4 - 1 for k in range(1, 5)]
        finest = min(4.0, patch / 2)
        self.scales = nn.ModuleList(_scaled(dim, finest / 2**level) for level in range(4))
        self.decoder = UPerNetDecoder([3, 0, *[dim] * 4], decoder_channels=width)
        self.segmentation_head = nn.Conv2d(width, classes, 1)
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) == 1:
            raise ZooError("UPerNet normalises over the batch, so it trains on two pictures or more: raise batch_size.")
        maps = self.encoder.forward_intermediates(images, indices=self.depths, norm=False, intermediates_only=True)
        scaled = [scale(level) for scale, level in zip(self.scales, maps, strict=True)]
        logits = self.segmentation_head(self.decoder([images, images, *scaled]))  # it does not look at the first two
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def _scaled(dim: int, factor: float) -> nn.Module:
    """A map of `dim` channels to `factor` times its side: learned upwards, the largest value downwards."""
    if factor == 1:
        return nn.Identity()
    if factor < 1:
        side = round(1 / factor)
        return nn.MaxPool2d(side, ceil_mode=True)
    up = nn.ConvTranspose2d(dim, dim, 2, 2)
    return up if factor == 2 else nn.Sequential(up, nn.BatchNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2))


def build_segmenter(encoder: nn.Module, classes: int, image_size: int, width: int, name: str) -> Segmenter:
    """The network for a backbone. Raises `ZooError` that calls it `name` if it is neither ResNet nor ViT."""
    if isinstance(encoder, ResNet):
        return UNet(encoder, classes)
    if isinstance(encoder, VisionTransformer):
        return ViTUPerNet(encoder, classes, image_size, width)
    raise ZooError(f"{name} has a {type(encoder).__name__}; segmentation takes timm's ResNets and ViTs.")


def _require() -> None:
    require("segmentation_models_pytorch", extra="segmentation", why="the decoders come from that library")


# ---------------------------------------------------------------------- losses


def soft_dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """One minus the mean over the images of 2 |p t| / (|p| + |t|); both (B, 1, H, W), the target may be mixed."""
    p, t = probabilities.flatten(1), target.flatten(1).to(probabilities.dtype)
    return 1 - (2 * (p * t).sum(dim=1) / (p.sum(dim=1) + t.sum(dim=1) + 1e-6)).mean()


def class_segmentation_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy plus soft Dice loss of several classes, each a mean over the pictures.

    Args:
        logits: (B, C, H, W). labels: (B, H, W) whole numbers, `IGNORE` where a pixel does not count.
        weight: (C,) of the classes in the cross-entropy.

    A picture's cross-entropy is the (weighted) mean over its pixels, its Dice the mean over the classes that are in it.
    """
    with full_precision(logits.device.type):
        logits, labels = logits.float().flatten(2), labels.long().flatten(1)
        known = labels != IGNORE
        safe = labels.masked_fill(~known, 0)
        log_p = logits.log_softmax(1)
        of_pixel = known.float() if weight is None else weight.to(log_p)[safe] * known
        own = log_p.gather(1, safe[:, None])[:, 0]
        entropy = -(own * of_pixel).sum(1) / of_pixel.sum(1).clamp_min(1e-6)
        shape = (len(logits), logits.shape[1])
        both = own.new_zeros(shape).scatter_add(1, safe, own.exp() * known)
        count = own.new_zeros(shape).scatter_add(1, safe, known.float())
        there = count > 0
        dice = 2 * both / ((log_p.exp() * known[:, None]).sum(2) + count).clamp_min(1e-6)
        return (entropy + 1 - (dice * there).sum(1) / there.sum(1).clamp_min(1)).mean()


# ---------------------------------------------------------------------- whole pictures


def on_whole(network: Segmenter, images: Tensor) -> Tensor:
    """Logits (B, C, H, W) of pictures of any size: a U-Net filled up to its stride, a ViT over windows."""
    height, width = images.shape[-2:]
    if isinstance(network, ViTUPerNet):
        side = network.stride
        filled = F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))
        return over_windows(network, filled, side)[..., :height, :width]
    filled = F.pad(images, (0, -width % network.stride, 0, -height % network.stride))
    return network(filled)[..., :height, :width]


def over_windows(network: Callable[[Tensor], Tensor], images: Tensor, side: int) -> Tensor:
    """Mean of `network` over square windows of `side` pixels that overlap by half at least, (B, C, H, W)."""
    total: Tensor | None = None
    times = images.new_zeros(images.shape[-2:])
    for top in _starts(images.shape[-2], side):
        for left in _starts(images.shape[-1], side):
            rows, columns = slice(top, top + side), slice(left, left + side)
            found = network(images[..., rows, columns]).float()
            if total is None:
                total = found.new_zeros(*found.shape[:2], *images.shape[-2:])
            total[..., rows, columns] += found
            times[rows, columns] += 1
    assert total is not None
    return total / times


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    steps = -(-(length - side) // max(1, side // 2))
    return [round(k * (length - side) / steps) for k in range(steps + 1)]
