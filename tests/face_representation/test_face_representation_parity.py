"""Losses, assignments, queue, networks, optimiser and schedule against what the official code recorded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.papers.face_representation import MoCo, SimSiam, SwAV, weights
from zoo.papers.face_representation.losses import balance, sinkhorn, swapped_prediction
from zoo.papers.face_representation.network import build_resnet, mlp, pyramid
from zoo.papers.face_representation.optim import LARC, warmup_cosine_at

pytestmark = pytest.mark.golden
EXACT = dict(rtol=1e-6, atol=1e-6)
CLOSE = dict(rtol=1e-5, atol=1e-5)


def cases(folder: Path, *keys: str) -> list[tuple[str, dict]]:
    """Every recorded case of the folder that holds all `keys`."""
    loaded = [(path.stem, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in loaded if all(key in case for key in keys)]
    if not found:
        pytest.skip(f"no case with {' and '.join(keys)} in {folder}")
    return found


def options_of(state: dict, prefix: str) -> tuple[str, dict]:
    """The bottleneck ResNet that a recorded state dict belongs to, read off its shapes."""
    shapes = {key.removeprefix(prefix): tuple(value.shape) for key, value in state.items() if key.startswith(prefix)}
    layers = [len({key.split(".")[1] for key in shapes if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
    planes = [shapes[f"layer{stage}.0.conv3.weight"][0] // 4 for stage in range(1, 5)]
    inner = shapes["layer4.0.conv2.weight"][0]
    return "resnet50", dict(layers=layers, channels=planes, base_width=inner * 64 // planes[3],
                            stem_width=shapes["conv1.weight"][0])  # fmt: skip


def sinkhorn_cases(folder: Path, world: int) -> list[tuple[str, dict]]:
    """The recorded assignments of so many processes, whether at the top of a file or below; several processes' rows are
    put together, in the order of ranks."""
    found = []
    for path in sorted(folder.glob("*.pt")):
        parts = list(_below(torch.load(path, weights_only=True), path.stem))
        several = "world2" in path.stem or any(part.get("world_size", 1) > 1 for _, part in parts)
        parts = [(name, part) for name, part in parts if "exp_scores_BxK" in part and "assignments" in part]
        if several and parts:
            both = {
                key: torch.cat([part[key].flatten(0, -2) for _, part in parts])
                for key in ("exp_scores_BxK", "assignments")
            }
            parts = [(path.stem, {**parts[0][1], **both})]
        if several == (world > 1):
            found += parts
    if not found:
        pytest.skip(f"no assignments of {world} processes in {folder}")
    return found


def _below(content: object, name: str) -> Iterator[tuple[str, dict]]:
    if isinstance(content, dict):
        yield name, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _below(value, f"{name}/{key}")


def test_sinkhorn_over_two_processes(golden_dir):
    # Row sums and the total are over both, column sums are a sample's own: the same as one process with all rows.
    for name, case in sinkhorn_cases(golden_dir("face_representation"), 2):
        ours = balance(case["exp_scores_BxK"], case.get("n_iters", 3))
        torch.testing.assert_close(ours, case["assignments"], **EXACT, msg=name)


def test_sinkhorn(golden_dir):
    for name, case in sinkhorn_cases(golden_dir("face_representation"), 1):
        ours = balance(case["exp_scores_BxK"], case["n_iters"])
        torch.testing.assert_close(ours, case["assignments"], **EXACT, msg=f"{name}")
        torch.testing.assert_close(ours.sum(dim=1), torch.ones(len(ours)), msg=f"{name}")
        if case["exp_scores_BxK"].isfinite().all():  # from the scores themselves, without overflow
            ours = sinkhorn(case["scores"], case["eps"], case["n_iters"])
            torch.testing.assert_close(ours, case["assignments"], rtol=1e-5, atol=1e-6, msg=f"{name}")


class Given(nn.Module):
    """A backbone and projector whose embedding is given."""

    num_features = 1

    def forward(self, x):
        return x


def stub(case: dict) -> SwAV:
    model = SwAV("resnet10t", dict(channels=[8] * 4), hidden_dim=8, embed_dim=case["D"], num_prototypes=case["K"],
                 assigned_crops=case["crops_for_assign"], temperature=case["temperature"], epsilon=case["epsilon"],
                 sinkhorn_iterations=case["sinkhorn_iterations"], queue_length=case["queue_length_arg"],
                 channels_last=False)  # fmt: skip
    model.projector, model._encode = nn.Identity(), nn.Identity()
    model.prototypes.weight.data.copy_(case["prototypes_initial"])
    return model


def test_swav_loss_and_queue(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "prototypes_initial", "steps"):
        model = stub(case)
        length = case["queue_length_arg"] - case["queue_length_arg"] % case["B"]
        for number, step in enumerate(case["steps"]):
            at = f"{name}, step {number}"
            model.zero_grad()
            model.normalize_prototypes()
            torch.testing.assert_close(
                model.prototypes.weight.data, step["prototypes_after_normalise"], **EXACT, msg=at
            )
            embedding = step["embedding"].clone().requires_grad_()
            # The recorded stub hands its embedding out as it is; ours normalises what is of unit length already or not.
            unit = embedding.unflatten(0, (-1, case["B"]))
            scores = model.prototypes(unit)
            assigned = model.assign(unit, scores, use_queue=bool(length))
            loss = swapped_prediction(scores, assigned, case["crops_for_assign"], case["temperature"])
            loss.backward()
            torch.testing.assert_close(loss.detach(), step["loss"], **EXACT, msg=f"{at}: loss")
            torch.testing.assert_close(embedding.grad, step["grad_embedding"], **EXACT, msg=f"{at}: embedding")
            torch.testing.assert_close(model.prototypes.weight.grad, step["grad_prototypes"], **EXACT, msg=at)
            if step["queue_after"].numel():
                torch.testing.assert_close(model.queue[:, :length], step["queue_after"], **EXACT, msg=f"{at}: queue")


def test_projector(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "y_eval_after_one_train_step"):
        state = {key.removeprefix("net."): value for key, value in case["state_dict"].items()}
        head = mlp([*(state[f"{index}.weight"].shape[1] for index in (0, 3)), state["3.weight"].shape[0]])
        head.load_state_dict(state)
        torch.testing.assert_close(head.train()(case["x"]), case["y_train"], **CLOSE, msg=f"{name}")
        torch.testing.assert_close(head.eval()(case["x"]), case["y_eval_after_one_train_step"], **CLOSE, msg=f"{name}")


def test_whole_network_in_training(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "bn_buffers_after", "scores"):
        state = case["state_dict"]
        network, options = options_of(state, "base_net.")
        hidden, (count, width) = state["projection_net.net.0.weight"].shape[0], state["prototypes.weight"].shape
        for layout in (False, True):
            model = SwAV(
                network, options, hidden_dim=hidden, embed_dim=width, num_prototypes=count, channels_last=layout
            )
            model.load_weights({f"module.{key}": value for key, value in state.items()})
            model.train()
            crops = [case[key].transpose(0, 1) for key in ("crops_224like", "crops_96like")]
            embedding, scores = model.embed(crops)
            torch.testing.assert_close(embedding.flatten(0, 1), case["embedding"], **CLOSE, msg=f"{name}")
            torch.testing.assert_close(scores.flatten(0, 1), case["scores"], **CLOSE, msg=f"{name}")
            (scores.square().mean() + embedding.flatten(0, 1)[:, :3].sum()).backward()
            grads = weights.swav_to_official({key: p.grad for key, p in model.named_parameters()})
            for key, expected in case["grads"].items():
                scale = expected.abs().max().item()
                torch.testing.assert_close(
                    grads[key], expected, rtol=1e-4, atol=1e-5 * max(scale, 1), msg=f"{name}: {key}"
                )
            after = model.official_state_dict()
            for key, expected in case["bn_buffers_after"].items():
                torch.testing.assert_close(after[key], expected, **CLOSE, msg=f"{name}: {key}")


def test_moco(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "queue_ptr_after"):
        state = case["state_dict"]
        network, options = options_of({k: v for k, v in state.items() if ".fc." not in k}, "encoder_q.")
        model = MoCo(network, options, embed_dim=len(state["queue"]), queue_length=case["K"], key_momentum=case["m"],
                     temperature=case["T"], mlp_head="encoder_q.fc.2.weight" in state)  # fmt: skip
        model.load_weights(state)
        model.train()
        logits = model.moco_logits(case["query"], case["key"])
        torch.testing.assert_close(logits, case["logits"], rtol=1e-5, atol=2e-5, msg=f"{name}")
        loss = nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        torch.testing.assert_close(loss, case["loss"], **CLOSE, msg=f"{name}")
        after = model.official_state_dict()
        torch.testing.assert_close(after["queue"], case["queue_after"], **CLOSE, msg=f"{name}")
        assert torch.equal(after["queue_ptr"], case["queue_ptr_after"]), name
        torch.testing.assert_close(after["encoder_k.conv1.weight"], case["key_conv1_after"], **CLOSE, msg=f"{name}")


def test_simsiam(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "view0", "grad_conv1"):
        state = case["state_dict"]
        network, options = options_of(state, "base_net.")
        model = SimSiam(network, options, embed_dim=state["projector.net.0.weight"].shape[0], channels_last=False)
        model.load_weights(state)
        loss, _ = model.train().siamese_loss(case["view0"], case["view1"])
        loss.backward()
        torch.testing.assert_close(loss.detach(), case["loss"], **CLOSE, msg=f"{name}")
        expected, grad = case["grad_conv1"], model.backbone.conv1.weight.grad
        # Batch norm over four samples of one pixel magnifies rounding: 2.4e-5 of the largest entry between two CPUs.
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-4 * expected.abs().max().item())


def procedural(key: str, value: torch.Tensor) -> torch.Tensor:
    """The weights of the folder's README: from the name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros_like(value)
    if key.endswith("running_var"):
        return torch.rand(value.shape, generator=generator) * 0.5 + 0.75
    if key.endswith("running_mean"):
        return torch.randn(value.shape, generator=generator) * 0.05
    if value.ndim == 1 and key.endswith("weight"):
        return torch.rand(value.shape, generator=generator) * 0.5 + 0.5
    if value.ndim == 1:
        return torch.randn(value.shape, generator=generator) * 0.05
    return torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5


def test_resnet50_features(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "feature_2048", "tensor_checks"):
        backbone = build_resnet("resnet50").eval()
        state = {key: procedural(key, value) for key, value in backbone.state_dict().items()}
        for key, (total, size) in case["tensor_checks"].items():
            assert abs(state[key].double().sum() - total) < 1e-3, f"{name}: {key}"
            assert abs(state[key].double().abs().sum() - size) < 1e-6 * size, f"{name}: {key}"
        # As a checkpoint of SwAV's own release names them.
        model = SwAV()
        head = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
        release = {key.replace("projector.", "projection_head."): value for key, value in head.items()}
        model.load_weights({f"module.{key}": value for key, value in {**state, **release}.items()})
        model.eval()
        with torch.no_grad():
            feature, maps = model(case["input"]), pyramid(model.backbone, case["input"])
        torch.testing.assert_close(feature, case["feature_2048"], rtol=1e-4, atol=1e-4, msg=f"{name}")
        torch.testing.assert_close(maps[3], case["c5"], rtol=1e-4, atol=1e-3, msg=f"{name}")
        for stage, found in zip(("c2", "c3", "c4"), maps, strict=False):
            torch.testing.assert_close(torch.stack([found.mean(), found.std()]), case[f"{stage}_mean_std"],
                                       rtol=1e-4, atol=1e-4, msg=f"{name}: {stage}")  # fmt: skip


def test_larc(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "params_after_step"):
        params = [nn.Parameter(value.clone()) for value in case["init"]]
        optimizer = LARC(params, lr=case["lr_per_step"][0], momentum=case["momentum"],
                         weight_decay=case["weight_decay"], trust=case["trust"], eps=case["eps"])  # fmt: skip
        for step, (lr, grads) in enumerate(zip(case["lr_per_step"], case["grads_per_step"], strict=True)):
            optimizer.param_groups[0]["lr"] = lr
            for index, (parameter, grad) in enumerate(zip(params, grads, strict=True)):
                # The recorded run took some gradients away, which the parameters show: they stay as they were.
                taken = grad.any() and torch.equal(parameter.data, case["params_after_step"][step][index])
                parameter.grad = None if taken else grad.clone()
            optimizer.step()
            for index, expected in enumerate(case["params_after_step"][step]):
                torch.testing.assert_close(params[index].data, expected, **EXACT, msg=f"{name}: {step}, {index}")
            for parameter in params:
                if parameter.grad is None and step == 0:  # absent, not zero
                    assert optimizer.state[parameter].get("momentum_buffer") is None


def test_schedule(golden_dir):
    for name, case in cases(golden_dir("face_representation"), "start_warmup", "final_lr"):
        per_epoch = case["iters_per_epoch"]
        ours = [
            warmup_cosine_at(step, lr=case["base_lr"], start_lr=case["start_warmup"], final_lr=case["final_lr"],
                             warmup_steps=per_epoch * case["warmup_epochs"], total_steps=per_epoch * case["epochs"])
            for step in range(len(case["lr"]))
        ]  # fmt: skip
        torch.testing.assert_close(
            torch.tensor(ours, dtype=torch.float64), case["lr"], rtol=1e-9, atol=1e-9, msg=f"{name}"
        )
