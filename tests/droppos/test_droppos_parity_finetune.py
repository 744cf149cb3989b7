"""The fine-tuning network and its layer-decay groups against the official ones."""

from __future__ import annotations

import json

import pytest
import torch

from zoo.optim import layer_decay_groups
from zoo.tasks import ImageClassification

pytestmark = pytest.mark.golden


def cases(folder):
    found = [(path.stem, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in found if "layer_decay_groups_json" in case]
    if not found:
        pytest.skip(f"no fine-tuning case in {folder}")
    return found


def test_logits_features_and_groups(golden_dir):
    for name, case in cases(golden_dir("droppos")):
        config = json.loads(case["config"])
        network = {
            key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        }
        model = ImageClassification(
            network=network, num_classes=config["num_classes"], drop_path=config["drop_path_rate"],
            pool="avg" if config["global_pool"] else "token", train_pos_embed=case["pos_embed_requires_grad"],
        ).eval()  # fmt: skip
        model.load_weights(case["state_dict"])
        with torch.no_grad():
            torch.testing.assert_close(model(case["images"]), case["features"], rtol=0, atol=1e-5, msg=name)
            torch.testing.assert_close(model.classify(case["images"]), case["logits"], rtol=0, atol=1e-5, msg=name)

        names = {id(parameter): key for key, parameter in model.backbone.named_parameters()}
        ours = {
            (round(group["lr_scale"], 12), group["weight_decay"]): sorted(names[id(p)] for p in group["params"])
            for group in layer_decay_groups(model.backbone, case["weight_decay"], case["layer_decay"])
        }
        official = {
            (round(group["lr_scale"], 12), group["weight_decay"]): sorted(group["params"])
            for group in json.loads(case["layer_decay_groups_json"])
        }
        assert ours == official, name
