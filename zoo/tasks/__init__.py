"""LightningModules for fine-tuning and evaluation that take any pre-trained backbone."""

from zoo.tasks.image_classification import ImageClassification
from zoo.tasks.knn import KNN
from zoo.tasks.linear_probe import LinearProbe
from zoo.tasks.text_classification import TextClassification

__all__ = ["KNN", "ImageClassification", "LinearProbe", "TextClassification"]
