"""Where a task starts from."""

from __future__ import annotations

from typing import Any

from zoo.module import ZooModule, import_class


def start_model(backbone: str | dict[str, Any]) -> ZooModule:
    """The model behind a zoo name, a manifest, a checkpoint or a run folder.

    A dict `{class_path, init_args}` gives the same module with random weights: a task's checkpoint holds one in place
    of the name, since its own state dict fills the weights.
    """
    if isinstance(backbone, dict):
        model = import_class(backbone["class_path"])(**backbone.get("init_args", {}))
        return model.eval()
    from zoo.loading import load

    return load(backbone)


def describe_model(model: ZooModule) -> dict[str, Any]:
    """What `start_model` rebuilds `model` from."""
    init_args = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    return {"class_path": f"{type(model).__module__}.{type(model).__qualname__}", "init_args": init_args}
