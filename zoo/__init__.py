"""The zoo: pre-training methods as LightningModules, each with data, recipes and weights.

    import zoo

    zoo.list_models("droppos*")
    model = zoo.load("droppos-vitb")                  # pretrained, in eval mode
    features = model(model.preprocess("photo.jpg"))

Nothing heavy is imported before a model is built.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from zoo.catalog import info, list_models, list_recipes
from zoo.errors import ZooError
from zoo.loading import load

try:
    __version__ = version("pretraining-zoo")
except PackageNotFoundError:  # a checkout that is on the path but not installed
    __version__ = "0+unknown"

__all__ = ["ZooError", "__version__", "info", "list_models", "list_recipes", "load"]
