"""What a starter is: a task for the user's own data, and the ways to it for families of models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to a task, for one family of models.

    Attributes:
        recipe: the room's fine-tuning recipe that the starter is made from.
        classes: class paths of the models that fit.
        model_key: the argument of the task that names the model.
        settings: what the starter changes in the recipe, by dotted key.
        from_model: settings that follow the model: {dotted key: its constructor argument, or that and the least value}.
        data: class path and settings of other data than the recipe's; None keeps them.
    """

    recipe: str
    classes: tuple[str, ...]
    model_key: str = "backbone"
    settings: Settings = field(default_factory=dict)
    from_model: dict[str, str | tuple[str, int]] = field(default_factory=dict)
    data: tuple[str, Settings] | None = None

    def takes(self, class_path: str) -> bool:
        """Whether a model of this class can be fine-tuned so."""
        return any(_same_class(class_path, known) for known in self.classes)


@dataclass(frozen=True)
class Starter:
    """A task for the user's own data.

    Attributes:
        task: its name on the command line. title: what it is, in a few words.
        variants: ways to it; the first whose classes fit is taken.
        monitor, mode: the metric that picks the best epoch, and whether "max" or "min" is best.
        layout: how the data folder must look, for the README.
        files: what `zoo predict` takes, output: what it writes (an example of -o).
        root: the data folder's name below the starter's own.
        comments: {dotted key: what to write beside it}, the things to change, in order.
    """

    task: str
    title: str
    variants: tuple[Variant, ...]
    monitor: str
    mode: str
    layout: str
    files: str
    output: str
    comments: dict[str, str]
    root: str = "data"

    def variant(self, class_path: str) -> Variant | None:
        """The way for a model of a class; None if it does not fit."""
        return next((variant for variant in self.variants if variant.takes(class_path)), None)


def _same_class(path: str, known: str) -> bool:
    """Rooms and tasks export their classes: `zoo.tasks.text_classification.X` is `zoo.tasks.X`."""
    here, there = path.split("."), known.split(".")
    return here[-1] == there[-1] and here[:2] == there[:2] and (here[1] != "papers" or here[2] == there[2])
