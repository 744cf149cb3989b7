"""Features, map functions, pre-training step, forecaster and metrics beside what the official code recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.driving.deform import map_function
from zoo.driving.features import LANE_COLUMNS, agent_vectors, goal_candidates, lane_vectors, localise, nearest_lane
from zoo.driving.maps import Lane, VectorMap
from zoo.driving.scenes import parse_scene
from zoo.papers.trajectory_mae import TrajectoryForecaster, TrajectoryMAE
from zoo.papers.trajectory_mae.masking import draw_masks
from zoo.papers.trajectory_mae.metrics import forecast_errors

pytestmark = pytest.mark.golden


def cases(folder: Path, key: str) -> list[tuple[str, dict]]:
    """Every recorded case of the folder that holds `key`."""
    loaded = [(path.stem, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in loaded if key in case]
    if not found:
        pytest.skip(f"no case with {key!r} in {folder}")
    return found


def unpack(case: dict) -> dict[str, Tensor]:
    """Recorded matrices and spans as our padded batch."""
    matrices: Sequence[Tensor] = case["matrices"]
    spans, starts = case["polyline_spans"], case["map_start_polyline_idx"]
    steps = max(end - begin for span, n in zip(spans, starts, strict=True) for begin, end in span[:n])
    lanes_n = max(len(span) - n for span, n in zip(spans, starts, strict=True))
    agents = torch.zeros(len(matrices), max(starts), steps, 10)
    lanes = torch.zeros(len(matrices), lanes_n, 9, 12)
    agent_length = torch.zeros(agents.shape[:2], dtype=torch.long)
    lane_length = torch.zeros(lanes.shape[:2], dtype=torch.long)
    for b, (matrix, span, n) in enumerate(zip(matrices, spans, starts, strict=True)):
        for j, (begin, end) in enumerate(span):
            rows = matrix[begin:end].float()
            if j < n:
                agents[b, j, : end - begin], agent_length[b, j] = rows[:, :10], end - begin
            else:
                lanes[b, j - n, : end - begin] = rows[:, list(LANE_COLUMNS)]
                lane_length[b, j - n] = end - begin
    return {"agents": agents, "agent_length": agent_length, "lanes": lanes, "lane_length": lane_length}


def recorded_masks(case: dict, batch: dict[str, Tensor]):
    draws = torch.tensor(case["theta_and_option_draws"], dtype=torch.float64)
    noise, recorded = torch.ones(batch["lane_length"].shape), iter(case["map_noise"])
    for b, option in enumerate(case["mask_option"]):
        if option == "map":
            values = next(recorded)
            noise[b, : len(values)] = values
    return draw_masks(
        batch["lane_length"],
        case["map_probability"],
        case["mask_ratio"],
        theta_draw=draws[0::2].float(),
        option_draw=draws[1::2],
        lane_noise=noise,
    )


def mae(case: dict, official: bool) -> TrajectoryMAE:
    model = TrajectoryMAE(
        width=case["hidden_size"],
        depth=case["sub_graph_depth"],
        mask_ratio=case["mask_ratio"],
        map_probability=case["map_probability"],
        official_mask=official,
        official_padding=official,
    )
    model.load_weights(case["state_dict"])
    return model


def test_map_functions(golden_dir):
    for _, case in cases(golden_dir("trajectory_mae"), "x"):
        x = case["x"].numpy()
        for part in case["cases"]:
            found = map_function(part["augment_type"], part["attack_power"]).f(x)
            np.testing.assert_allclose(found, part["y"].numpy(), rtol=0, atol=1e-9)


def test_features(golden_dir):
    for name, case in cases(golden_dir("trajectory_mae"), "csv_text"):
        fields = ("lane_ids", "lanes", "lane_has_traffic_control", "lane_turn_direction", "lane_is_intersection")
        lanes = {
            i: Lane(i, points.double().numpy()[:, :2], bool(control), turn, bool(inside))
            for i, points, control, turn, inside in zip(*(case[field] for field in fields), strict=True)
        }
        scene = parse_scene(case["csv_text"], case["file_name"], case["file_name"])
        local = localise(scene, VectorMap(scene.city, lanes))
        origin = scene.augmentation.undo(local.frame.origin) if scene.augmentation else local.frame.origin
        np.testing.assert_allclose(origin, case["map_query"][0][:2], rtol=0, atol=1e-9, err_msg=name)
        assert local.frame.angle == pytest.approx(case["angle"], abs=1e-12), name
        agents = agent_vectors(local.tracks, history_only=not case["pretrain"])
        vectors, lengths = lane_vectors(local.lanes, local.lane_flags, len(agents))
        assert len(agents) == case["map_start_polyline_idx"], name
        rows = [np.pad(a, ((0, 0), (0, case["hidden_size"] - 10))) for a in agents]
        for lane, n in zip(vectors, lengths, strict=True):
            wide = np.zeros((n, case["hidden_size"]), np.float32)
            wide[:, list(LANE_COLUMNS)] = lane[:n]
            rows.append(wide)
        ends = np.cumsum([len(row) for row in rows])
        assert [[end - len(row), end] for row, end in zip(rows, ends, strict=True)] == case["polyline_spans"], name
        np.testing.assert_allclose(np.concatenate(rows), case["matrix"].numpy(), rtol=0, atol=1e-4, err_msg=name)
        truth = local.tracks[0].xy[20:]
        np.testing.assert_allclose(truth, case["labels"].numpy(), rtol=0, atol=1e-9, err_msg=name)
        goals = goal_candidates(local.lanes)
        np.testing.assert_allclose(goals, case["goals_2D"].numpy(), rtol=0, atol=1e-4, err_msg=name)
        assert int(np.hypot(*(goals - truth[-1]).T).argmin()) == case["goals_2D_label"], name
        assert nearest_lane(local.lanes, truth[-1]) == case["stage_one_label"], name


def test_pretraining_step_with_the_official_mask(golden_dir):
    for name, case in cases(golden_dir("trajectory_mae"), "target_queries"):
        model, batch = mae(case, official=True), unpack(case)
        masks = recorded_masks(case, batch)
        assert ["map" if chosen else "traj" for chosen in masks.map_masked] == case["mask_option"], name
        for b, ids in enumerate(case["ids_target"]):
            if case["mask_option"][b] == "map":
                assert sorted(ids) == (masks.lanes[b].nonzero().flatten() + 1).tolist(), name
        out = model.reconstruct(batch, masks)
        for b, (seen, asked) in enumerate(zip(case["visible_lengths"], case["query_lengths"], strict=True)):
            close = dict(rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(out.encoded[b][out.visible[b]], case["encoded_visible"][b, :seen], **close)
            torch.testing.assert_close(out.queries[b, :asked], case["target_queries"][b, :asked], **close)
            if case["mask_option"][b] == "map":
                torch.testing.assert_close(out.lanes[b, : asked // 9], case["pred_map"][b, : asked // 9], **close)
            else:
                torch.testing.assert_close(out.trajectory[b], case["pred_traj"][b], **close)
        torch.testing.assert_close(out.loss_per_scene, case["loss_per_sample"], rtol=1e-5, atol=1e-6)
        assert out.loss.item() == pytest.approx(case["loss"], rel=1e-5), name
        out.loss.backward()
        assert max(float(p.grad.abs().max()) for p in model.backbone.parameters() if p.grad is not None) == 0.0, name
        assert case["encoder_grad_norm_max"] == 0.0


def test_default_mask_trains_every_encoder_tensor(golden_dir):
    for name, case in cases(golden_dir("trajectory_mae"), "target_queries"):
        model, batch = mae(case, official=False), unpack(case)
        model.reconstruct(batch, recorded_masks(case, batch)).loss.backward()
        for key, parameter in model.backbone.named_parameters():
            assert parameter.grad is not None, (name, key)
            assert parameter.grad.abs().max() > 0, (name, key)


def test_forecaster(golden_dir):
    for name, case in cases(golden_dir("trajectory_mae"), "dense_goals"):
        model = TrajectoryForecaster(
            width=case["hidden_size"], depth=case["sub_graph_depth"], official_padding=True, unused_weights=True
        )
        model.load_weights(case["state_dict"])
        back = model.official_state_dict()
        assert set(back) == set(case["state_dict"]), name
        assert all(torch.equal(back[key], value) for key, value in case["state_dict"].items()), name
        counts = [len(goals) for goals in case["goals_2D"]]
        batch = unpack(case) | {
            "goals": torch.nn.utils.rnn.pad_sequence(list(case["goals_2D"]), batch_first=True).float(),
            "goal_count": torch.tensor(counts),
            "future": torch.stack(list(case["labels"])).float(),
            "lane_label": torch.tensor(case["stage_one_label"]),
        }
        scores = model.score(batch)
        for b, (n, goals) in enumerate(zip(case["lengths"], counts, strict=True)):
            seen, close = scores.visible[b], dict(rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(scores.states[b][seen], case["pre_global"][b, :n], **close)
            torch.testing.assert_close(scores.hidden[b][seen], case["global_hidden"][b, :n], **close)
            lanes = case["lane_states"][b]
            torch.testing.assert_close(scores.lane_states[b, : len(lanes)], lanes, **close)
            torch.testing.assert_close(scores.sparse[b, :goals], case["sparse_scores"][b], rtol=1e-4, atol=1e-4)
            ours = torch.cat([scores.goals[b], scores.dense[b].unsqueeze(1)], dim=1)[scores.valid[b]].detach().numpy()
            theirs = torch.cat([case["dense_goals"][b], case["dense_scores"][b].unsqueeze(1)], dim=1).detach().numpy()
            assert ours.shape == theirs.shape, name
            ours, theirs = (rows[np.lexsort(rows.T[[2, 1, 0]])] for rows in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)
            label = case["dense_goals"][b][case["dense_label"][b]]
            index = (scores.goals[b] - batch["future"][b, -1]).norm(dim=-1).masked_fill(~scores.valid[b], 1e9).argmin()
            torch.testing.assert_close(scores.goals[b, index], label)
            best = scores.goals[b, scores.dense[b].argmax()]
            assert float((best - batch["future"][b, -1]).norm()) == pytest.approx(float(case["final_DE"][b]), abs=1e-3)
        assert model.loss(batch, scores).mean().item() == pytest.approx(case["loss"], rel=1e-5), name
        done = model.decoder.complete(case["given_goals"], scores.hidden[:, 0], scores.states, scores.visible)
        torch.testing.assert_close(done, case["completed_trajs"], rtol=1e-4, atol=1e-4)


def test_metrics(golden_dir):
    for name, case in cases(golden_dir("trajectory_mae"), "k6_prob"):
        for k in (6, 1):
            for suffix, probability in (("", None), ("_prob", case["prob"])):
                found = forecast_errors(case["pred"], case["gt"], probability, k)
                for metric, expected in case[f"k{k}{suffix}"].items():
                    assert found[metric].mean().item() == pytest.approx(expected, abs=1e-6), (name, k, suffix, metric)
