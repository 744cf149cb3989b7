"""The method where no recorded case reaches: uniform scores, queue, freezing, groups, weights, two processes."""

from __future__ import annotations

import math
import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import zoo
from zoo.errors import ZooError
from zoo.papers.face_representation import MoCo, SimSiam, SwAV
from zoo.papers.face_representation.losses import sinkhorn, swapped_prediction
from zoo.papers.face_representation.optim import LARC, parameter_groups, warmup_cosine_at

SMALL = dict(network="resnet18", network_options=dict(layers=[1] * 4, channels=[8] * 4, stem_width=8), image_size=32)
SWAV = dict(**SMALL, hidden_dim=16, embed_dim=8, num_prototypes=12)


def crops(batch: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, 3, s, s, generator=generator) for n, s in ((2, 32), (3, 16))]


def test_full_size_has_the_published_numbers():
    with torch.device("meta"):
        model = SwAV()
    assert sum(p.numel() for p in model.parameters()) == 28_354_752
    assert sum(p.numel() for p in model.backbone.parameters()) == 23_508_032
    assert sum(p.numel() for p in model.projector.parameters()) == 4_462_720


def test_uniform_scores_cost_the_log_of_their_number():
    scores = torch.full((8, 5, 3000), 0.3)
    assigned = [sinkhorn(scores[crop]) for crop in (0, 1)]
    torch.testing.assert_close(assigned[0], torch.full((5, 3000), 1 / 3000))
    assert swapped_prediction(scores, assigned, [0, 1]).item() == pytest.approx(math.log(3000), abs=1e-4)


def test_assignments_use_all_prototypes_alike_and_survive_extremes():
    scores = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    balanced = sinkhorn(scores, epsilon=0.05, iterations=100)
    torch.testing.assert_close(balanced.sum(dim=0), torch.full((12,), 64 / 12), rtol=1e-3, atol=1e-3)
    for extreme in (scores * 1e4, scores.half(), torch.zeros(4, 6)):
        out = sinkhorn(extreme)
        assert out.dtype == torch.float32
        assert out.isfinite().all()
        torch.testing.assert_close(out.sum(dim=1), torch.ones(len(out)))


def test_crops_go_through_one_forward_a_resolution_and_one_head():
    model = SwAV(**SWAV).train()
    calls, heads = [], []
    model.backbone.register_forward_hook(lambda _, given, __: calls.append(tuple(given[0].shape)))
    model.projector.register_forward_hook(lambda _, given, __: heads.append(given[0].shape[0]))
    embedding, scores = model.embed(crops())
    assert calls == [(8, 3, 32, 32), (12, 3, 16, 16)]
    assert heads == [20]
    assert embedding.shape == (5, 4, 8)
    assert scores.shape == (5, 4, 12)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(5, 4))


def test_queue_counts_once_it_is_full_and_newest_lies_on_top():
    model = SwAV(**SWAV, queue_length=11)
    model.normalize_prototypes()
    seen = []
    for step in range(4):
        embedding, scores = model.embed(crops(seed=step))
        alone = sinkhorn(scores[0])
        assigned = model.assign(embedding, scores, use_queue=True)
        assert (step >= 2) == (not torch.allclose(alone, assigned[0], atol=1e-6))  # 2 batches of 4 fill 8 of 11 rows
        torch.testing.assert_close(model.queue[0, :4], embedding[0])
        seen.append(embedding[1])
    torch.testing.assert_close(model.queue[1, :8], torch.cat([seen[3], seen[2]]))
    with pytest.raises(ZooError, match="queue_length"):
        model.swav_loss(crops(batch=12), use_queue=True)


def test_frozen_prototypes_get_no_gradient_and_no_momentum():
    model = SwAV(**SWAV, freeze_prototypes_steps=2, lr=0.1)
    optimizer = LARC(parameter_groups(model, False), lr=0.1, weight_decay=1e-6)

    class At:
        global_step = 0

    for step in range(3):
        model._trainer = At
        model.normalize_prototypes()
        before = model.prototypes.weight.detach().clone()
        model.swav_loss(crops(seed=step)).backward()
        At.global_step = step
        model.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        frozen = step < 2
        assert torch.equal(before, model.prototypes.weight) == frozen
        assert ("momentum_buffer" in optimizer.state.get(model.prototypes.weight, {})) == (not frozen)
    model._trainer = None


def test_larc_scales_steps_and_leaves_zero_parameters_alone():
    big, zero = nn.Parameter(torch.full((4,), 2.0)), nn.Parameter(torch.zeros(3))
    optimizer = LARC([big, zero], lr=1.0, momentum=0.0, weight_decay=0.5, trust=0.1, eps=0.0)
    big.grad, zero.grad = torch.full((4,), 1.0), torch.full((3,), 1.0)
    optimizer.step()
    # |p| = 4, |g| = 2: (1 + 0.5 * 2) * 0.1 * 4 / (2 + 0.5 * 4) = 0.2
    torch.testing.assert_close(big.data, torch.full((4,), 1.8))
    torch.testing.assert_close(zero.data, torch.full((3,), -1.0))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_norm_layers_and_biases_can_be_left_out():
    model = SwAV(**SWAV)
    assert len(parameter_groups(model, False)) == 1
    weights, plain = parameter_groups(model, True)
    assert all(p.ndim > 1 for p in weights["params"])
    assert plain["weight_decay"] == 0
    assert plain["adapt"] is False
    optimizer = LARC([weights, plain], lr=0.1, weight_decay=0.1)
    model.swav_loss(crops()).backward()
    bias = model.projector[0].bias
    before, grad = bias.detach().clone(), bias.grad.clone()
    optimizer.step()
    torch.testing.assert_close(bias.data, before - 0.1 * grad)  # plain SGD


def test_schedule_has_the_published_corners():
    rate = dict(lr=4.8, start_lr=0.3, final_lr=0.0048, warmup_steps=100, total_steps=1000)
    assert warmup_cosine_at(0, **rate) == 0.3
    assert warmup_cosine_at(99, **rate) == pytest.approx(4.8)
    assert warmup_cosine_at(100, **rate) == 4.8
    assert 0.0048 < warmup_cosine_at(999, **rate) < 0.0049


@pytest.mark.parametrize("cls", [SwAV, MoCo, SimSiam])
def test_official_names_there_and_back(cls):
    options = dict(embed_dim=8) | (dict(queue_length=8, mlp_head=True) if cls is MoCo else {})
    options |= dict(hidden_dim=16, num_prototypes=12) if cls is SwAV else {}
    model, fresh = cls(**SMALL, **options), cls(**SMALL, **options)
    official = {f"module.{key}": value for key, value in model.official_state_dict().items()}
    fresh.load_weights(official)
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key
    official.pop(next(key for key in official if key.endswith("conv1.weight")))
    with pytest.raises(ZooError, match=r"conv1\.weight is missing"):
        fresh.load_weights(official)


def test_the_release_of_swav_itself_loads():
    model, fresh = SwAV(**SWAV), SwAV(**SWAV)
    names = {"backbone.": "", "projector.": "projection_head."}
    release = {}
    for key, value in model.state_dict().items():
        old = next((old for old in names if key.startswith(old)), "")
        release[f"module.{names.get(old, '')}{key.removeprefix(old)}"] = value
    assert {"module.conv1.weight", "module.projection_head.0.weight", "module.prototypes.weight"} <= set(release)
    fresh.load_weights(release)
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key
    release["module.layer5.weight"] = torch.zeros(1)
    with pytest.raises(ZooError, match="layer5"):
        fresh.load_weights(release)


def test_photographs_are_turned_upright(tmp_path):
    from PIL import Image

    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    model = SwAV(**SWAV)
    turned = model.preprocess(picture.transpose(Image.Transpose.ROTATE_270))
    for given in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        torch.testing.assert_close(model.preprocess(given), turned)


def test_an_official_checkpoint_file_loads_with_its_optimiser_beside_it(tmp_path):
    model = SwAV(**SWAV)
    state = {f"module.{key}": value for key, value in model.official_state_dict().items()}
    path = tmp_path / "flr.pth"
    torch.save({"epoch": 400, "state_dict": state, "optimizer": {"state": {}}, "amp": {"loss_scaler0": {}}}, path)
    from zoo.checkpoint_files import read_state_dict

    fresh = SwAV(**SWAV)
    fresh.load_weights(read_state_dict(path))
    assert torch.equal(fresh.prototypes.weight, model.prototypes.weight)


def test_moco_checks_its_queue_and_two_views():
    model = MoCo(**SMALL, embed_dim=8, queue_length=10)
    with pytest.raises(ZooError, match="queue_length"):
        model.moco_logits(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
    with pytest.raises(ZooError, match="num_crops"):
        model.training_step([torch.randn(4, 3, 3, 32, 32)], 0)


def test_simsiam_starts_as_the_official_code_does():
    model = SimSiam(**SMALL, embed_dim=8)
    conv = model.backbone.layer2[0].conv1.weight
    bound = conv[0].numel() ** -0.5
    assert conv.abs().max() <= bound
    assert conv.abs().max() > 0.9 * bound
    assert model.backbone.layer1[0].bn2.weight.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(network="resnet5"), "Did you mean"),
        (dict(network_options=dict(width=3)), "width"),
        (dict(epsilon=0.0), "epsilon"),
        (dict(assigned_crops=[0, 0]), "assigned_crops"),
    ],
)
def test_wrong_settings_are_named(arguments, said):
    with pytest.raises(ZooError, match=said):
        SwAV(**{**SWAV, **arguments})


def test_assigned_crops_must_exist():
    with pytest.raises(ZooError, match="5 crops"):
        SwAV(**{**SWAV, "assigned_crops": [0, 7]}).swav_loss(crops())


def test_the_manifests_of_the_published_weights_warn():
    for name in ("face-resnet50-vggface", "face-resnet50-vggface-1m"):
        info = zoo.info(name)
        assert "research" in info.notes
        assert info.verified is False


# ---------------------------------------------------------------------- two processes


def _rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(_steps(rank, 2), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def _steps(rank: int, world: int) -> dict:
    """Steps of SwAV with a queue and of MoCo, batch norm over all devices: gradients, queues, assignments."""
    out: dict = {"assigned": [], "grads": []}
    for cls in (SwAV, MoCo):
        torch.manual_seed(0)
        options = dict(hidden_dim=16, num_prototypes=12, queue_length=16) if cls is SwAV else dict(queue_length=24)
        model = cls(**SMALL, embed_dim=8, **options).train()
        if world > 1:
            model.synchronise(on_cpu=True)
        for step in range(4):
            whole = crops(batch=8, seed=step)
            mine = [part[rank * 8 // world : (rank + 1) * 8 // world] for part in whole]
            model.zero_grad()
            if cls is SwAV:
                model.normalize_prototypes()
                embedding, scores = model.embed(mine)
                assigned = model.assign(embedding, scores, use_queue=True)
                loss = swapped_prediction(scores, assigned, [0, 1])
                out["assigned"].append(assigned[0])
            else:
                torch.manual_seed(step)
                logits = model.moco_logits(mine[0][:, 0], mine[0][:, 1])
                loss = nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
            loss.backward()
            grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            if world > 1:
                dist.all_reduce(grads)
            out["grads"].append(grads / world)
        out[f"{cls.__name__} statistics"] = model.backbone.bn1.running_var
        out[cls.__name__] = model.queue.sort(dim=-1).values if cls is MoCo else model.queue.sort(dim=1).values
    return out


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    one = _steps(0, 1)
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    two = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for step, whole in enumerate(one["assigned"]):
        both = torch.cat([rank["assigned"][step] for rank in two])
        torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-5)
    for step, whole in enumerate(one["grads"]):
        torch.testing.assert_close(two[0]["grads"][step], whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())
    for name in ("SwAV", "MoCo"):
        torch.testing.assert_close(two[0][name], two[1][name], rtol=0, atol=0)
        torch.testing.assert_close(two[0][name], one[name], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(two[0][f"{name} statistics"], one[f"{name} statistics"])
