"""A trained model as a file that runs without this library: ONNX, or torch.export's program.

The file is kept only if it gives the model's own numbers, on another number of samples than it was made with.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.extras import require

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-3
"""Largest difference of an output, relative to its largest value, that a kept file may have."""
_MOST_BYTES = 2**31 - 2**26  # ONNX files of one piece end at 2 GiB


@dataclass
class Deployed:
    """What is exported of a model.

    Attributes:
        network: module whose `forward` takes the inputs in order and gives one tensor.
        inputs: {name: example with two samples}. output: name of what comes out.
        dynamic: {input: {axis: name}}, the axes that may have any size.
        facts: what a user of the file must know: classes, normalisation, sizes.
    """

    network: nn.Module
    inputs: dict[str, Tensor]
    output: str
    dynamic: dict[str, dict[int, str]]
    facts: dict[str, Any] = field(default_factory=dict)


class _Calls(nn.Module):
    """Calls a function of the model's in `forward`, so that exporters see the model as a part."""

    def __init__(self, model: nn.Module, function: Any) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.model, *inputs)


def deploy(model: Any) -> Deployed:
    """What to export of a model of the zoo. Raises `ZooError` for one that is no plain function of tensors."""
    from zoo.tasks import (
        ImageSegmentation,
        TextClassification,
        TokenClassification,
        VolumeClassification,
        VolumeSegmentation,
        VolumeSurvival,
    )
    from zoo.tasks.evaluation import ImageClassifier
    from zoo.tasks.start import image_size_of

    facts: dict[str, Any] = {"class": type(model).__name__}
    if isinstance(model, TextClassification | TokenClassification):
        length = min(16, model.hparams.max_positions)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.hparams.vocab_size, (2, length), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        inputs["attention_mask"][1, length // 2 :] = 0
        facts["classes"] = getattr(model, "classes", None) or getattr(model, "tags", None)
        facts["max_length"] = model.hparams.max_positions
        number = bool(getattr(model, "regression", False))

        def texts(m: Any, *tensors: Tensor) -> Tensor:
            logits = m.classify(dict(zip(inputs, tensors, strict=True)))
            return logits[:, 0] if number else logits.softmax(-1)

        axes = {name: {0: "batch", 1: "length"} for name in inputs}
        return Deployed(_Calls(model, texts), inputs, "score" if number else "probabilities", axes, facts)
    if isinstance(model, VolumeClassification | VolumeSegmentation | VolumeSurvival):
        size = model.image_size
        generator = torch.Generator().manual_seed(0)
        volumes = {name: torch.randn(2, 1, size, size, size, generator=generator) for name in model.modalities}

        def mri(m: Any, *tensors: Tensor) -> Tensor:
            return m.network(dict(zip(volumes, tensors, strict=True))).float().sigmoid()

        if isinstance(model, VolumeSurvival):
            output = "hazards"
        else:
            output = "regions" if isinstance(model, VolumeSegmentation) else "probability"
            facts["classes"] = ["tc", "wt", "et"] if output == "regions" else model.class_names()
        facts["voxels"] = "1 mm, z-scored over the non-zero ones"
        axes = {name: {0: "batch"} for name in volumes}
        return Deployed(_Calls(model, mri), volumes, output, axes, facts)
    size = image_size_of(model)
    if size is None or hasattr(model, "forecast") or hasattr(model, "view_features") or hasattr(model, "render"):
        raise ZooError(
            f"A {type(model).__name__} is no plain function of pictures, volumes or texts, so it has no such file: "
            "give its weights away with zoo export --name."
        )
    images = {"images": torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))}
    axes = {"images": {0: "batch"}}
    facts["image_size"] = size
    if isinstance(model, ImageClassifier):
        facts |= {"classes": model.class_names(), **model.view()}
        output = "numbers" if model.targets == "numbers" else "probabilities"
        return Deployed(_Calls(model, lambda m, x: m.predict_step(x, 0)), images, output, axes, facts)
    if isinstance(model, ImageSegmentation):
        facts |= model.view()
        if model.num_classes == 1:
            return Deployed(_Calls(model, lambda m, x: m(x).sigmoid()), images, "mask", axes, facts)
        facts["classes"] = model.class_names()
        return Deployed(_Calls(model, lambda m, x: m(x).softmax(1)), images, "probabilities", axes, facts)
    if getattr(model.hparams, "task", None) == "attributes":
        facts["classes"] = model.class_names()
        return Deployed(_Calls(model, lambda m, x: m(x).softmax(-1)), images, "probabilities", axes, facts)
    return Deployed(_Calls(model, lambda m, x: m(x)), images, "features", axes, facts)


def export_model(model: Any, path: Path, kind: str, *, force: bool = False) -> float:
    """Writes `path` (`.onnx` or `.pt2`) and `path` + `.json` with the facts; returns the largest relative difference.

    Raises `ZooError` if the exporter cannot follow the model, or the file gives other numbers: nothing is kept then.
    """
    if path.suffix != FORMATS[kind]:
        raise ZooError(f"--format {kind} writes a {FORMATS[kind]} file, not {path}.")
    if path.exists() and not force:
        raise ZooError(f"{path} exists already: choose another name, or overwrite it with --force.")
    if kind == "onnx":
        require("onnx", "onnxruntime", "onnxscript", extra="export", why="ONNX files are made and checked with these")
        if sum(p.numel() * 4 for p in model.parameters()) > _MOST_BYTES:
            raise ZooError("An ONNX file of one piece ends at 2 GiB, and this model is larger: use --format torch.")
    deployed = deploy(model.float().cpu().eval())
    new = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            _write(deployed, new, kind)
            gap = _compare(deployed, new, kind)
        if not gap <= TOLERANCE:
            raise ZooError(
                f"The {kind} file differs from the model by {gap:.1e}, more than {TOLERANCE:g}: it is not kept."
            )
        facts = {"inputs": {name: _shape(deployed, name) for name in deployed.inputs}, "output": deployed.output}
        Path(f"{path}.json").write_text(json.dumps(facts | deployed.facts, indent=2) + "\n", encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        new.unlink(missing_ok=True)
    return gap


def _shape(deployed: Deployed, name: str) -> list[Any]:
    return [deployed.dynamic[name].get(axis, size) for axis, size in enumerate(deployed.inputs[name].shape)]


def _write(deployed: Deployed, path: Path, kind: str) -> None:
    sizes = {name: torch.export.Dim.AUTO for axes in deployed.dynamic.values() for name in axes.values()}
    shapes = tuple({axis: sizes[name] for axis, name in deployed.dynamic[key].items()} for key in deployed.inputs)
    arguments = tuple(deployed.inputs.values())
    try:
        program = torch.export.export(deployed.network, arguments, dynamic_shapes=(shapes,))
        if kind == "torch":
            torch.export.save(program, path)
            return
        made = torch.onnx.export(
            program,
            (),
            input_names=list(deployed.inputs),
            output_names=[deployed.output],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        made.save(str(path), external_data=False)  # type: ignore[union-attr]
    except (OSError, ZooError):
        raise
    except Exception as error:  # whatever the exporters meet in the model
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ZooError(f"The {kind} exporter cannot follow this model: {reason}") from error


def _compare(deployed: Deployed, path: Path, kind: str) -> float:
    """Largest difference of the file's output from the model's, relative to the largest value; on three samples."""
    inputs = {name: torch.cat([value, value.flip(0)])[:3] for name, value in deployed.inputs.items()}
    wanted = deployed.network(*inputs.values())
    if kind == "torch":
        found = torch.export.load(path).module()(*inputs.values())
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        known = {node.name for node in session.get_inputs()}  # one that changes nothing is left out
        feed = {name: value.numpy() for name, value in inputs.items() if name in known}
        found = torch.from_numpy(session.run(None, feed)[0])
    if found.shape != wanted.shape:
        raise ZooError(f"The {kind} file gives {tuple(found.shape)}, the model {tuple(wanted.shape)}: it is not kept.")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
