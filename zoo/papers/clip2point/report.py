"""What pre-training gave: retrieval, zero-shot and few-shot accuracy of the depth encoder, before and after."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.folder import run_folder
from zoo.callbacks.probe_report import ProbeReport, _Row
from zoo.papers.clip2point.fewshot import NETWORK, DualPathAdapter
from zoo.papers.clip2point.losses import retrieval_accuracy
from zoo.papers.clip2point.module import CLIP2Point
from zoo.papers.clip2point.rendering import clip_images
from zoo.papers.clip2point.zeroshot import zero_shot_logits


class TransferReport(ProbeReport):
    """Scores the depth encoder when training starts and when it ends, on the data module's held-out shapes.

    - image -> depth retrieval: within batches of `retrieval_batch` objects, how often the depth map that is most
      similar to a picture is of the same object;
    - zero-shot: views against the text features of the classes, where the model started from a CLIP;
    - few-shot: the Dual-Path Adapter trained on `shots` clouds a class, on features computed once.

    The baseline is the depth encoder as it was before training, so CLIP's own tower looking at depth maps.

    Args:
        shots: training examples a class.
        epochs: of the adapters.
        retrieval_batch: objects to choose from; fewer if there are fewer held-out ones.
    """

    def __init__(self, shots: int = 16, epochs: int = 100, retrieval_batch: int = 64) -> None:
        super().__init__()
        self.shots, self.epochs, self.retrieval_batch = shots, epochs, retrieval_batch

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        after = self._probe(trainer, pl_module)
        rows = [_Row(name, value, self._before[name], "the tower it started from") for name, value in after.items()]
        self._print(rows)
        path = run_folder(trainer) / "results.json"
        path.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", encoding="utf-8")

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, CLIP2Point)
        data = trainer.datamodule  # type: ignore[attr-defined]
        was_training = pl_module.training
        pl_module.eval()
        # Scoring must not change what training draws afterwards.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            loaders = data.labelled_dataloaders()
            train, held_out = (_view_features(pl_module, loader) for loader in loaders)
            size = min(self.retrieval_batch, len(data.val_data))
            scores = {f"image -> depth top-1, of {size}": self._retrieval(pl_module, data, size)}
            if pl_module.class_features:
                text = pl_module.class_features[0].to(held_out[0])
                right = zero_shot_logits(held_out[0], text).argmax(dim=1) == held_out[2]
                scores["zero-shot accuracy"] = float(right.float().mean())
            shots = min(self.shots, int(train[2].bincount().max()))
            scores[f"{shots}-shot accuracy (DPA)"] = self._few_shot(pl_module, data.prompt_names, train, held_out)
        pl_module.train(was_training)
        return scores

    def _retrieval(self, model: CLIP2Point, data: object, size: int) -> float:
        pairs = data.val_data  # type: ignore[attr-defined]
        order = torch.randperm(len(pairs))[: len(pairs) // size * size]
        hits = []
        for chunk in order.view(-1, size):
            images, points, elev, azim, _ = (torch.stack([torch.as_tensor(x) for x in field]) for field in zip(
                *(pairs[int(index)] for index in chunk), strict=True
            ))  # fmt: skip
            device = model.device
            draws = torch.full((2, size, 1), 0.5, device=device)
            out = model.contrast(points.to(device), images.to(device), elev.to(device), azim.to(device), draws=draws)
            hits.append(retrieval_accuracy(out.image_features, out.depth_features[0]))
        return float(torch.stack(hits).mean())

    def _few_shot(
        self, model: CLIP2Point, names: list[str], train: tuple[Tensor, ...], held_out: tuple[Tensor, ...]
    ) -> float:
        chosen = torch.cat([(train[2] == label).nonzero()[: self.shots, 0] for label in train[2].unique()])
        with torch.enable_grad():
            network = {key: model.hparams[key] for key in NETWORK}
            adapter = DualPathAdapter(clip=None, network=network, views=model.render.num_views).to(model.device)
            if model.class_features:
                adapter.text_features = model.class_features[0].to(model.device)
            else:
                adapter.set_classes(names)
            trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
            h = adapter.hparams
            optimizer = torch.optim.AdamW(trained, lr=h.lr, weight_decay=h.weight_decay)
            adapter.train()
            for _ in range(self.epochs):
                for batch in chosen[torch.randperm(len(chosen))].split(32):
                    if len(batch) < 2:
                        continue
                    features = adapter.adapt(train[0][batch], train[1][batch])
                    loss = F.cross_entropy(features @ adapter.text_features.t(), train[2][batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        adapter.eval()
        with torch.no_grad():
            guess = (adapter.adapt(held_out[0], held_out[1]) @ adapter.text_features.t()).argmax(dim=1)
        return float((guess == held_out[2]).float().mean())


def _view_features(model: CLIP2Point, loader: object) -> tuple[Tensor, Tensor, Tensor]:
    """View features (M, V, D) of the depth encoder and of the image tower, and labels (M,), of all clouds."""
    pretrained, original, labels = [], [], []
    for points, label in loader:  # type: ignore[attr-defined]
        maps = clip_images(model.render(points.to(model.device)))
        for tower, out in ((model.backbone, pretrained), (model.image_tower, original)):
            assert tower is not None
            out.append(tower(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]).float())
        labels.append(torch.as_tensor(label, device=model.device))
    return torch.cat(pretrained), torch.cat(original), torch.cat(labels)
