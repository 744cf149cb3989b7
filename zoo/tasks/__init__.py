"""LightningModules for fine-tuning and evaluation that take any pre-trained backbone."""

from zoo.tasks.image_classification import ImageClassification
from zoo.tasks.image_segmentation import ImageSegmentation
from zoo.tasks.knn import KNN
from zoo.tasks.linear_probe import LinearProbe
from zoo.tasks.question_answering import QuestionAnswering
from zoo.tasks.resnet_classification import ResNetClassification
from zoo.tasks.text_classification import TextClassification
from zoo.tasks.token_classification import TokenClassification
from zoo.tasks.volume_classification import VolumeClassification, VolumeSurvival
from zoo.tasks.volume_segmentation import VolumeSegmentation

__all__ = [
    "KNN",
    "ImageClassification",
    "ImageSegmentation",
    "LinearProbe",
    "QuestionAnswering",
    "ResNetClassification",
    "TextClassification",
    "TokenClassification",
    "VolumeClassification",
    "VolumeSegmentation",
    "VolumeSurvival",
]
