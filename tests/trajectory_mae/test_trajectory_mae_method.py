"""Masking, frames, padding, the fixed decoder mask, goal selection, encoder transfer, forecasts from arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer

from datamodules.trajectory_mae import DrivingDataModule
from zoo.driving.agents import drive
from zoo.driving.features import Frame, LocalScene, Sample, collate, localise, make_sample
from zoo.driving.maps import VectorMap
from zoo.driving.scenes import Scene, Track
from zoo.driving.synthesis import windows
from zoo.driving.towns import make_town
from zoo.errors import ZooError
from zoo.papers.trajectory_mae import TrajectoryForecaster, TrajectoryMAE, losses
from zoo.papers.trajectory_mae.goals import dense_goals, likely_lanes
from zoo.papers.trajectory_mae.inputs import to_tensors
from zoo.papers.trajectory_mae.masking import Masks, draw_masks, turn_agents, turn_lanes
from zoo.papers.trajectory_mae.metrics import constant_velocity
from zoo.papers.trajectory_mae.selection import expected_distance, select_end_points, spread


@pytest.fixture(scope="module")
def town() -> VectorMap:
    return make_town(1, size=3)


@pytest.fixture(scope="module")
def scenes(town) -> list[Scene]:
    return [scene for run in drive(town, range(3), 0, True) for scene in windows(run, "MIA")]


@pytest.fixture(scope="module")
def locals_(town, scenes) -> list[LocalScene]:
    return [localise(scene, town) for scene in scenes]


def batch_of(samples: list[Sample]) -> dict[str, torch.Tensor]:
    return to_tensors(collate(samples))


@pytest.fixture(scope="module")
def batch(locals_):
    return batch_of([make_sample(local, history_only=False) for local in locals_[:6]])


@pytest.fixture(scope="module")
def history(locals_):
    return batch_of([make_sample(local, history_only=True) for local in locals_[:6]])


def tiny(**changes) -> TrajectoryMAE:
    torch.manual_seed(0)
    return TrajectoryMAE(**{"width": 24, "depth": 1, **changes})


# ---------------------------------------------------------------------- frame


def test_frame_and_its_inverse_are_exact(scenes):
    for scene in scenes[:10]:
        frame = Frame.of(scene.agent.xy[:20])
        there = frame.to_agent(scene.agent.xy)
        np.testing.assert_allclose(frame.to_city(there), scene.agent.xy, rtol=0, atol=1e-9)
        assert there[19] == pytest.approx([0, 0], abs=1e-12)
        ahead = (there[16:20] - there[14:18]).mean(0)
        assert ahead[0] == pytest.approx(0, abs=1e-9)
        assert ahead[1] > 0


# ---------------------------------------------------------------------- masking


def test_share_of_map_masking_is_seventy_percent():
    lengths = torch.full((10_000, 6), 9)
    masked = draw_masks(lengths, 0.7, 0.5).map_masked.sum().item()
    assert abs(masked - 7000) < 4 * (10_000 * 0.7 * 0.3) ** 0.5


@pytest.mark.parametrize(("lanes", "expected"), [(14, 7), (13, 7), (2, 1), (3, 2)])
def test_half_of_the_lanes_are_masked(lanes, expected):
    lengths = torch.zeros(50, 20, dtype=torch.long)
    lengths[:, :lanes] = 9
    masks = draw_masks(lengths, 1.0, 0.5)
    assert (masks.lanes.sum(1) == expected).all()
    assert not masks.lanes[:, lanes:].any()
    assert len({tuple(row.tolist()) for row in masks.lanes}) > 1


def test_agents_are_never_masked_with_the_map(locals_):
    local = locals_[0]
    others = [Track("OTHERS", track.times, track.xy + 3) for track in local.tracks] * 3
    crowd = LocalScene("x", "MIA", local.frame, local.tracks + others, local.lanes, local.lane_flags, local.lane_ids)
    batch = batch_of([make_sample(crowd, history_only=False)] * 4)
    out = tiny(map_probability=1.0).reconstruct(batch)
    assert out.visible[:, :4].all()
    assert (out.lane_masked.sum(1) == (len(local.lanes) - int(len(local.lanes) * 0.5))).all()


def test_first_vector_stays_visible_and_the_rest_is_the_token(batch):
    model = tiny(map_probability=1.0, rotate=False)
    out = model.reconstruct(batch)
    queries = out.queries.unflatten(1, (-1, 9)) if out.queries.shape[1] % 9 == 0 else out.queries[:, :9].unsqueeze(1)
    moved = {key: value.clone() for key, value in batch.items()}
    moved["lanes"][:, :, 1:, 8:] += 5.0  # all but the first vector of each lane
    again = model.reconstruct(moved, out.masks)
    other = again.queries.unflatten(1, (-1, 9)) if queries.shape[1] > 1 else again.queries[:, :9].unsqueeze(1)
    torch.testing.assert_close(queries, other)


def test_turning_keeps_lengths_and_everything_else(batch):
    theta = torch.rand(len(batch["lanes"])) * 6
    lanes, agents = turn_lanes(batch["lanes"], theta), turn_agents(batch["agents"], theta)
    before, after = (x[..., [9, 8]].norm(dim=-1) for x in (batch["lanes"], lanes))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-4)
    assert torch.equal(lanes[..., 2:8], batch["lanes"][..., 2:8])
    assert torch.equal(agents[..., 4:], batch["agents"][..., 4:])


# ---------------------------------------------------------------------- the network


def test_padding_does_not_change_a_scene(locals_):
    model = tiny(map_probability=1.0).eval()
    samples = [make_sample(local, history_only=False) for local in sorted(locals_, key=lambda s: len(s.lanes))]
    alone, together = batch_of(samples[:1]), batch_of([samples[0], samples[-1]])
    assert together["lanes"].shape[1] > alone["lanes"].shape[1]
    masks = model.fixed_masks(alone, 0)
    wide = torch.zeros(2, together["lanes"].shape[1], dtype=torch.bool)
    wide[0, : masks.lanes.shape[1]] = masks.lanes[0]
    wide[1, ::2] = True
    both = Masks(masks.theta.repeat(2), masks.map_masked.repeat(2), wide & (together["lane_length"] > 0))
    one, two = model.reconstruct(alone, masks), model.reconstruct(together, both)
    torch.testing.assert_close(one.loss_per_scene[0], two.loss_per_scene[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(alone)[0], model(together)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("official", [False, True])
def test_prediction_follows_a_visible_lane_only_with_the_fixed_mask(batch, official):
    model = tiny(map_probability=1.0, rotate=False, official_mask=official).eval()
    masks = model.fixed_masks(batch, 0)
    moved = {key: value.clone() for key, value in batch.items()}
    seen = ((batch["lane_length"] > 0) & ~masks.lanes)[:, :, None, None]
    moved["lanes"][..., 8:] += 7.0 * seen
    first, second = model.reconstruct(batch, masks).lanes, model.reconstruct(moved, masks).lanes
    assert torch.equal(first, second) is official


def test_batch_with_one_kind_of_mask(batch):
    for probability in (0.0, 1.0):
        out = tiny(map_probability=probability).reconstruct(batch)
        assert out.loss.isfinite()
        out.loss.backward()


@pytest.mark.parametrize("official", [False, True])
def test_released_mask_leaves_the_encoder_at_its_random_start(batch, official):
    """So fine-tuning after pre-training with it is fine-tuning from scratch."""
    model = tiny(official_mask=official, normalise=True)
    start = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.reconstruct(batch).loss.backward()
        optimizer.step()
    moved = [key for key, value in model.backbone.state_dict().items() if not torch.equal(value, start[key])]
    assert len(moved) == (0 if official else len([key for key in start if not key.endswith("_scale")]))


@pytest.mark.parametrize("encoder_lr", [None, 0.004])
def test_encoder_has_a_rate_of_its_own(tmp_path, encoder_lr):
    """Both rates follow one schedule: up from nothing for an epoch, down to nothing at the end."""
    model = tiny(normalise=True, lr=0.04, encoder_lr=encoder_lr, cosine=True, warmup_epochs=1)
    rates: list[list[float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    options = dict(max_epochs=3, limit_val_batches=0, logger=False, enable_checkpointing=False)
    data = DrivingDataModule(batch_size=8, generated_runs=4, generated_size=2, cache_dir=str(tmp_path))
    Trainer(accelerator="cpu", callbacks=[Watch()], enable_progress_bar=False, **options).fit(model, data)
    encoder, decoders = map(list, zip(*rates, strict=True))
    assert encoder == pytest.approx([rate * (1 if encoder_lr is None else 0.1) for rate in decoders])
    top = len(rates) // 3
    assert decoders[0] == 0
    assert decoders[top] == pytest.approx(0.04) == max(decoders)
    assert decoders[-1] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_lr": 0.0}, "above 0"),
        ({"warmup_epochs": -1.0, "cosine": True}, "at least 0"),
        ({"warmup_epochs": 1.0}, "cosine"),
    ],
)
def test_rates_that_cannot_be_are_refused(options, message):
    with pytest.raises(ZooError, match=message):
        tiny(**options)


def test_normalised_features_come_back_in_metres(batch):
    model = tiny(map_probability=1.0, rotate=False, normalise=True)
    out, raw = model.reconstruct(batch), tiny(map_probability=1.0, rotate=False)
    plain = raw.reconstruct(batch, out.masks)
    torch.testing.assert_close(out.lane_target, plain.lane_target, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.trajectory_target, plain.trajectory_target, rtol=1e-5, atol=1e-4)
    scale = model.backbone.lane_scale
    error = ((out.lanes - out.lane_target) / scale).abs().mean(dim=(2, 3)) * out.lane_masked
    torch.testing.assert_close(out.loss_per_scene, error.sum(1) / out.lane_masked.sum(1))
    with pytest.raises(ZooError, match="no official form"):
        model.official_state_dict()


@pytest.mark.parametrize("normalise", [False, True])
def test_an_encoder_of_the_other_scale_is_refused(normalise):
    state = tiny(normalise=normalise).state_dict()
    TrajectoryForecaster(width=24, depth=1, normalise=normalise).load_encoder(state)
    with pytest.raises(ZooError, match=r"agent_scale is (missing|no part)"):
        TrajectoryForecaster(width=24, depth=1, normalise=not normalise).load_encoder(state)


def test_each_decoder_runs_on_its_own_scenes(batch):
    model = tiny(map_probability=0.5)
    out = model.reconstruct(batch)
    assert 0 < out.masks.map_masked.sum() < len(out.masks.map_masked)
    assert not out.lanes[~out.masks.map_masked].any()
    assert not out.trajectory[out.masks.map_masked].any()


def test_constant_velocity_is_exact_for_steady_driving():
    steps = np.stack([np.zeros(51), np.arange(-20, 31) * 0.7], axis=1)
    agents = torch.zeros(1, 1, 19, 10)
    agents[0, 0, :, 0:2], agents[0, 0, :, 2:4] = torch.tensor(steps[1:20]), torch.tensor(steps[2:21])
    found = constant_velocity({"agents": agents})
    torch.testing.assert_close(found[0, 0].double(), torch.tensor(steps[21:]), rtol=1e-5, atol=1e-5)


def test_unused_modes_get_a_push():
    target = torch.zeros(3, 49, 10)
    prediction = torch.full((3, 2, 49, 10), 2.0)
    prediction[:, 0] = 1.0
    prediction[2, 1] = 0.5
    loss, _ = losses.trajectory_loss(prediction, target, torch.tensor([True, True, True]))
    assert loss.tolist() == pytest.approx([1.1, 1.1, 0.5])  # in the third scene both modes have been best once
    loss, _ = losses.trajectory_loss(prediction, target, torch.tensor([True, False, False]))
    assert loss.tolist() == pytest.approx([1.1, 0, 0])


# ---------------------------------------------------------------------- goals


def test_lanes_are_kept_up_to_the_one_that_passes():
    scores = torch.tensor([[0.5, 0.3, 0.16, 0.04], [0.96, 0.02, 0.01, 0.01]]).log()
    assert likely_lanes(scores).tolist() == [[True, True, True, False], [True, False, False, False]]


def test_dense_goals_hold_each_cell_once():
    goals = torch.tensor([[[0.2, 0.1], [1.4, 0.0], [30.0, -4.0]]])
    found, valid = dense_goals(goals, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0.0, -1.0, -50.0]]), top=2)
    grid = {tuple(p) for p in found[0][valid[0]][:-3].tolist()}
    assert grid == {(float(x), float(y)) for x in range(-2, 4) for y in range(-2, 3)}
    assert valid.sum() == 30 + 3


def test_selected_end_points_beat_random_hill_climbing():
    generator = torch.Generator().manual_seed(0)
    goals = torch.randint(-20, 20, (1, 150, 2), generator=generator).float()
    probability = torch.rand(1, 150, generator=generator) ** 4
    probability /= probability.sum()
    ends, share = select_end_points(goals, probability.log())
    assert share.sum().item() == pytest.approx(1, abs=1e-5)
    points, mass = spread(goals, probability, 2)
    ours = expected_distance(ends, points, mass).item()
    best = float("inf")
    for _ in range(4):  # the released search: steps of up to exp(-2 t) m on a few of the points, keep what is better
        now = goals[:, torch.randint(150, (6,), generator=generator)].clone()
        value = expected_distance(now, points, mass).item()
        for step in range(300):
            reach = float(np.exp(-2 * step / 300))
            move = (torch.rand(1, 6, 2, generator=generator) * 2 - 1) * reach
            move *= torch.rand(1, 6, 1, generator=generator) < 0.3
            if (new := expected_distance(now + move, points, mass).item()) < value:
                now, value = now + move, new
        best = min(best, value)
    assert ours <= best * 1.01


# ---------------------------------------------------------------------- the forecaster


def test_forecaster_takes_exactly_the_encoder(tmp_path):
    mae, forecaster = tiny(), TrajectoryForecaster(width=24, depth=1)
    forecaster.load_encoder(mae.official_state_dict())
    for key, value in mae.backbone.state_dict().items():
        assert torch.equal(forecaster.backbone.state_dict()[key], value)
    full = TrajectoryForecaster()
    assert len(full.backbone.state_dict()) == 32
    assert sum(value.numel() for value in full.backbone.state_dict().values()) == 280_064
    state = mae.state_dict()
    with pytest.raises(ZooError, match=r"laneGCN_A2L\.key\.weight is missing"):
        forecaster.load_encoder({k: v for k, v in state.items() if k != "backbone.laneGCN_A2L.key.weight"})
    with pytest.raises(ZooError, match="extra is no part"):
        forecaster.load_encoder({**state, "extra": torch.zeros(1)})
    with pytest.raises(ZooError, match="has shape"):
        forecaster.load_encoder(tiny(width=28).state_dict())


def test_forecast_from_plain_arrays_lands_in_the_city_frame(town, scenes, history):
    torch.manual_seed(0)
    model = TrajectoryForecaster(width=24, depth=1).eval()
    scene = scenes[0]
    original = scene.augmentation.undo(scene.agent.xy) if scene.augmentation else scene.agent.xy
    found = model.forecast(original[:20], town)
    assert found.trajectories.shape == (6, 30, 2)
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert np.hypot(*(found.trajectories[:, -1] - original[19]).T).max() < 90
    turned = np.array([[0.0, -1.0], [1.0, 0.0]])
    lanes = [lane.points @ turned.T + 100 for lane in town.lanes.values()]
    straight = model.forecast(original[:20], [lane.points for lane in town.lanes.values()])
    moved = model.forecast(original[:20] @ turned.T + 100, lanes)
    gap = straight.trajectories[:, -1] @ turned.T + 100 - moved.trajectories[:, -1]
    assert np.abs(gap).max() < 1.5  # another cut of the square around the agent may add or drop a far lane


@pytest.mark.parametrize(
    ("history", "lanes", "message"),
    [
        (np.zeros((19, 2)), [np.zeros((2, 2))], "20 positions"),
        (np.full((20, 2), np.nan), [np.zeros((2, 2))], "not a number"),
        (np.zeros((20, 2)), [np.zeros((1, 2))], "at least two points"),
        (np.zeros((20, 2)), [], "not empty"),
        ("far", [np.zeros((2, 2))], "20 positions"),
    ],
)
def test_forecast_says_what_is_wrong(history, lanes, message):
    with pytest.raises(ZooError, match=message):
        TrajectoryForecaster(width=24, depth=1).forecast(history, lanes)


def test_forecaster_trains_every_part_it_uses(history):
    torch.manual_seed(0)
    model = TrajectoryForecaster(width=24, depth=1)
    model.loss(history).mean().backward()
    idle = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []
