"""Pictures of any kind as 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB.

    Pillow's own `convert` cuts 16-bit greys off at 255, so that a 16-bit PNG turns white: they are scaled here.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" is what some 16-bit files open as
        grey = np.asarray(image)
        if grey.size and (image.mode != "I" or grey.max() > 255):
            return Image.fromarray((grey.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
