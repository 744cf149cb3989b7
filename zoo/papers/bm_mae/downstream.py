"""What BM-MAE's encoder becomes: a classifier on the class token, a UNETR on states averaged over sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.extras import require
from zoo.papers.bm_mae.network import MultimodalViT


def copy_encoder(source: MultimodalViT, **arguments: Any) -> MultimodalViT:
    """A new encoder with the weights of `source`; tokenizers (and a class token) that it does not have are left out."""
    encoder = MultimodalViT(**arguments)
    state = source.state_dict()
    own = encoder.state_dict()
    missing = [key for key in own if key not in state]
    if missing:
        raise ZooError(f"The encoder to start from has no {missing[0]}.")
    encoder.load_state_dict({key: state[key] for key in own})
    return encoder


class Classifier(nn.Module):
    """Logits from the class token: {sequence: (B, 1, S, S, S)} to (B, outputs).

    Any subset of the encoder's sequences will do, in any order.
    """

    def __init__(self, source: MultimodalViT, encoder: Mapping[str, Any], outputs: int) -> None:
        super().__init__()
        self.encoder = copy_encoder(source, **encoder)
        self.output_layer = nn.Sequential(nn.Linear(self.encoder.dim, 256), nn.ReLU(), nn.Linear(256, outputs))

    def forward(self, volumes: Mapping[str, Tensor]) -> Tensor:
        return self.output_layer(self.encoder(volumes)[:, 0])


class Segmenter(nn.Module):
    """MONAI's UNETR decoder over the encoder's states: {sequence: (B, 1, S, S, S)} to logits (B, outputs, S, S, S).

    Equals MONAI's UNETR (feature size 16, instance norm, residual blocks) where patches have 16 voxels and the encoder
    12 blocks: skips from blocks 3, 6 and 9, one convolution of the raw sequences. For patches of 2^n voxels there are n
    levels, with skips at equal distances. Its first convolution is made for a fixed number of sequences.
    """

    def __init__(self, source: MultimodalViT, encoder: Mapping[str, Any], outputs: int, feature_size: int = 16) -> None:
        super().__init__()
        require("monai", extra="medical", why="segmentation uses MONAI's UNETR")
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

        self.encoder = copy_encoder(source, **encoder, class_token=False)
        levels = self.encoder.patch_size.bit_length() - 1
        if 2**levels != self.encoder.patch_size or levels < 2:
            raise ZooError(f"UNETR needs patches of 4, 8, 16 ... voxels, not {self.encoder.patch_size}.")
        width, f, channels = self.encoder.dim, feature_size, len(self.encoder.modalities)
        common: dict[str, Any] = dict(spatial_dims=3, kernel_size=3, norm_name="instance", res_block=True)
        self.levels = levels
        self.skips = [len(self.encoder.blocks) * level // levels for level in range(1, levels)]
        self.encoder1 = UnetrBasicBlock(in_channels=channels, out_channels=f, stride=1, **common)
        for level in range(1, levels):
            block = UnetrPrUpBlock(
                in_channels=width, out_channels=f * 2**level, num_layer=levels - 1 - level, stride=1,
                upsample_kernel_size=2, conv_block=True, **common,
            )  # fmt: skip
            self.add_module(f"encoder{level + 1}", block)
        for level in range(levels, 0, -1):
            inside = width if level == levels else f * 2**level
            block = UnetrUpBlock(
                in_channels=inside, out_channels=f * 2 ** (level - 1), upsample_kernel_size=2, **common
            )
            self.add_module(f"decoder{level + 1}", block)
        self.out = UnetOutBlock(spatial_dims=3, in_channels=f, out_channels=outputs)

    def forward(self, volumes: Mapping[str, Tensor]) -> Tensor:
        names = self.encoder.check(volumes)
        if len(names) != len(self.encoder.modalities):
            raise ZooError(
                f"This segmenter was made for {', '.join(self.encoder.modalities)}; it got {', '.join(names)}."
            )
        final, states = self.encoder.hidden_states(volumes)
        skips = [self.encoder1(torch.cat([volumes[name] for name in names], dim=1))]
        skips += [
            self.get_submodule(f"encoder{level + 1}")(self._grid(states[index]))
            for level, index in enumerate(self.skips, start=1)
        ]
        x = self._grid(final)
        for level in range(self.levels, 0, -1):
            x = self.get_submodule(f"decoder{level + 1}")(x, skips[level - 1])
        return self.out(x)

    def _grid(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.encoder.grid).contiguous()
