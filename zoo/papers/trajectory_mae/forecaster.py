"""Forecasting: DenseTNT on the (pre-trained) encoder, for Argoverse 1.

Shape letters: B scenes, K modes, T future steps, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.driving.features import AGENT_SCALE, LocalScene, collate, make_sample, rotate, sample_from_arrays
from zoo.driving.maps import Lane, VectorMap
from zoo.driving.scenes import FUTURE
from zoo.errors import ZooError
from zoo.module import StateDict, full_precision
from zoo.papers.trajectory_mae import goals as stage
from zoo.papers.trajectory_mae import weights
from zoo.papers.trajectory_mae.inputs import preprocess_scene, to_tensors
from zoo.papers.trajectory_mae.metrics import forecast_errors
from zoo.papers.trajectory_mae.network import Attention, ConcatHead, GlobalGraph, ResidualHead, VectorNetEncoder
from zoo.papers.trajectory_mae.selection import select_end_points
from zoo.tasks.outcomes import SampleOutcome
from zoo.tasks.tuning import TunedTask

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Forecast:
    """Trajectories of one agent, the one that would be best alone first.

    Attributes:
        trajectories: (6, 30, 2) metres, city frame, 0.1 s apart.
        probabilities: (6,) summing to 1.
    """

    trajectories: NDArray[np.float64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What the decoder says of a batch.

    Attributes:
        states, hidden: (B, P, D) before and after the global graph; visible: (B, P); lane_states: (B, L, D).
        lanes: (B, L) log-probabilities. sparse: (B, G) those of the sparse goals.
        goals: (B, G', 2), valid: (B, G'), dense: (B, G') log-probabilities of the dense goals.
    """

    states: Tensor
    hidden: Tensor
    visible: Tensor
    lane_states: Tensor
    lanes: Tensor
    sparse: Tensor
    goals: Tensor
    valid: Tensor
    dense: Tensor


class TrajectoryForecaster(TunedTask):
    """Predicts six trajectories of 3 s for an agent from 2 s of history and the map around it.

    Args:
        pretrained: what the encoder starts from: None, a zoo name, a checkpoint, a run folder of TrajectoryMAE, or an
            official `model.pretrain.N.bin`. Exactly the encoder's 32 tensors are taken. A forecaster of the same shape
            brings its decoder along.
        width, depth: see `TrajectoryMAE`; both must be those of `pretrained`.
        modes: trajectories.
        official_padding: see `VectorNetEncoder`.
        normalise: see `TrajectoryMAE`; must be that of `pretrained`.
        unused_weights: carry along the parameters that the official state dict holds and never uses, so that it can be
            loaded and written back.
        lr: Adam's rate; times `lr_decay` every `lr_step` epochs.
        tuning: how much of the encoder is trained, such as {mode: frozen} or {mode: lora, rank: 8}; see
            `zoo.tasks.tuning.Tuning`.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        width: int = 128,
        depth: int = 3,
        modes: int = 6,
        official_padding: bool = False,
        normalise: bool = False,
        unused_weights: bool = False,
        lr: float = 1.0e-3,
        lr_decay: float = 0.3,
        lr_step: int = 5,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # A trained model holds its encoder itself: loading it must not look for the file it once started from.
        self.save_hyperparameters(ignore=["pretrained"])
        if width < 20 or width % 4:
            raise ZooError(f"width is a multiple of 4 and at least 20, not {width}.")
        if lr <= 0:
            raise ZooError(f"A learning rate lies above 0, not at {lr}.")
        self.backbone = VectorNetEncoder(width, depth, official_padding, normalise)
        self.decoder = stage.GoalDecoder(width, FUTURE, AGENT_SCALE[0] if normalise else 1.0)
        if unused_weights:
            self.unused = _unused(width, depth).requires_grad_(False)
        if pretrained is not None:
            state = _encoder_weights(pretrained)
            if set(state) == set(self.state_dict()):  # a forecaster: its decoder comes along
                self.load_weights(state, pretrained)
            else:
                self.load_encoder(state, pretrained)

    def load_encoder(self, state_dict: StateDict, source: str = "these weights") -> None:
        """Takes exactly the encoder's tensors (official or our names); `ZooError` names one missing or misshapen.

        The rest of a pre-training model (tokens, masked decoders, heads) is known and left behind; any other key is an
        error.
        """
        state = weights.from_official(state_dict) if weights.is_official(state_dict) else state_dict
        rest = ("traj_mask_token", "map_mask_token", "traj_pos_enc", "map_pos_enc")
        heads = ("map_decoder.", "traj_decoder.", "pred_map.", "pred_traj.")
        state = {key: value for key, value in state.items() if key not in rest and not key.startswith(heads)}
        own = {f"backbone.{key}": value for key, value in self.backbone.state_dict().items()}
        problems = [f"{key} is missing" for key in own if key not in state]
        problems += [f"{key} is no part of a pre-training model" for key in state if key not in own]
        problems += [
            f"{key} has shape {tuple(state[key].shape)}, the encoder needs {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ]
        if problems:
            raise ZooError(f"{source} is no pre-trained encoder for this forecaster: {'; '.join(problems[:5])}.")
        self.backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in state.items()})

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Batch:
        """A scene (CSV, or `{"scene": CSV, "map": folder}`, or `{"history": (20, 2), "map": lanes}`) to a batch."""
        return preprocess_scene(raw)

    def forward(self, batch: Batch) -> Tensor:
        """(B, D): the agent's state among everything around it."""
        return self.backbone(batch)[1][:, 0]

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.from_official(state_dict) if weights.is_official(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        """This model's weights under the official names; undoes `convert_state_dict`."""
        return weights.to_official(self.state_dict())

    # ------------------------------------------------------------------ the method

    def score(self, batch: Batch) -> Scores:
        """Lanes, sparse goals and dense goals of a batch, each with log-probabilities."""
        states, hidden, visible, lane_states = self.backbone(batch)
        agent, has_lane = hidden[:, 0], batch["lane_length"] > 0
        has_lane = has_lane | ~has_lane.any(1, keepdim=True)
        lanes = self.decoder.score_lanes(agent, lane_states, has_lane, states, visible)
        top, kept = stage.keep_lanes(lane_states, stage.likely_lanes(lanes.detach()))
        goals = batch["goals"]
        valid = torch.arange(goals.shape[1], device=goals.device) < batch["goal_count"].unsqueeze(1)
        context = (agent, states, visible, top, kept)
        with torch.no_grad():  # only picks the dense goals: nothing is learned through it
            sparse = self.decoder.score_goals(goals, valid, *context)
        goals, valid = stage.dense_goals(goals, valid, sparse)
        dense = self.decoder.score_goals(goals, valid, *context)
        return Scores(states, hidden, visible, lane_states, lanes, sparse, goals, valid, dense)

    def loss(self, batch: Batch, scores: Scores | None = None) -> Tensor:
        """(B,): lane NLL + goal NLL + Huber loss of the trajectory completed from the true end."""
        s = self.score(batch) if scores is None else scores
        truth = batch["future"]
        with full_precision(truth.device.type):
            lane = -s.lanes.float().gather(1, batch["lane_label"].unsqueeze(1)).squeeze(1)
            label = stage.nearest_goal(s.goals, s.valid, truth[:, -1])
            goal = -s.dense.float().gather(1, label.unsqueeze(1)).squeeze(1)
        completed = self.decoder.complete(truth[:, -1:], s.hidden[:, 0], s.states, s.visible)[:, 0]
        with full_precision(truth.device.type):
            return lane + goal + stage.smooth_l1(completed, truth)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Trajectories (B, K, 30, 2) in the agent frame, each ending in its goal, and probabilities (B, K)."""
        s = self.score(batch)
        ends, probability = select_end_points(s.goals, s.dense, self.hparams.modes)
        paths = self.decoder.complete(ends, s.hidden[:, 0], s.states, s.visible).float()
        paths[:, :, -1] = ends
        return paths, probability

    def forecast(self, history: NDArray[np.float64], map: VectorMap | Sequence[NDArray[np.float64] | Lane]) -> Forecast:
        """Forecasts one agent from plain arrays.

        Args:
            history: (20, 2) positions in metres, city frame, 0.1 s apart, the last one now.
            map: a `VectorMap`, or centre lines (N, 2) in driving direction (bare, or as `Lane`s with turn and signal).
        """
        sample, frame = sample_from_arrays(history, map)
        batch = {key: value.to(self.device) for key, value in to_tensors(collate([sample])).items()}
        paths, probability = self.predict(batch)
        return Forecast(frame.to_city(paths[0].double().cpu().numpy()), probability[0].double().cpu().numpy())

    def predict_local(self, local: LocalScene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Trajectories (6, 30, 2) and probabilities (6,) for a scene in its agent's frame, in that frame."""
        sample = make_sample(local, history_only=True)
        batch = {key: value.to(self.device) for key, value in to_tensors(collate([sample])).items()}
        paths, probability = self.predict(batch)
        return paths[0].double().cpu().numpy(), probability[0].double().cpu().numpy()

    # ------------------------------------------------------------------ training and evaluation

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch).mean()
        self.log("train/loss", loss.detach(), batch_size=len(batch["future"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(batch["future"])
        self.log("val/loss", self.loss(batch).mean(), sync_dist=True, batch_size=size)
        paths, _ = self.predict(batch)
        for k in (6, 1):
            for name, value in forecast_errors(paths, batch["future"], k=k).items():
                bar = k == 6
                self.log(f"val/{name}_{k}", value.float().mean(), prog_bar=bar, sync_dist=True, batch_size=size)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """City-frame trajectories and probabilities, by scene: what a submission needs."""
        paths, probability = self.predict(batch)
        city = [
            rotate(path.double().cpu().numpy(), -float(angle)) + origin.cpu().numpy()
            for path, angle, origin in zip(paths, batch["angle"], batch["origin"], strict=True)
        ]
        return {"trajectories": np.stack(city), "probabilities": probability.double().cpu().numpy()}

    def outcome_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Errors of each scene: of the best of six, and of the first."""
        paths, _ = self.predict(batch)
        return {
            f"{name}_{k}": value for k in (6, 1) for name, value in forecast_errors(paths, batch["future"], k=k).items()
        }

    def outcome(self, rows: list[dict[str, Tensor]], data: Any) -> SampleOutcome:
        """What was found in all held-out scenes; metres, MR is a share."""
        return SampleOutcome.of(rows, "minFDE_6")

    def figures(self, batch: Batch) -> dict[str, Any]:
        """Pictures of a batch, for the Figures callback."""
        from zoo.papers.trajectory_mae.figures import draw_forecasts  # matplotlib is only needed here

        paths, probability = self.predict(batch)
        return {"forecasts": draw_forecasts(batch, paths, probability)}

    def configure_optimizers(self) -> dict[str, Any]:
        # The released code has a second Adam, with the same rate and schedule, for the completion: the same updates.
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.hparams.lr_step, self.hparams.lr_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch", "name": "lr"}}


def _unused(width: int, depth: int) -> nn.Module:
    """The official predictor's idle parameters, under its names."""
    sub_graph = nn.ModuleDict(
        {
            "layers_3": nn.ModuleList(nn.LayerNorm(width) for _ in range(depth)),
            "layers_4": nn.ModuleList(Attention(width) for _ in range(depth)),
        }
    )
    decoder = nn.ModuleDict({"decoder": ResidualHead(width, 2), "goals_2D_decoder": ConcatHead(width, 3 * width, 1)})
    return nn.ModuleDict(
        {
            "point_level_sub_graph": sub_graph,
            "point_level_cross_attention": Attention(width),
            "laneGCN_L2L": GlobalGraph(width),
            "laneGCN_L2A": Attention(width),
            "decoder": decoder,
        }
    )


def _encoder_weights(pretrained: str) -> StateDict:
    from zoo.checkpoint_files import read_state_dict
    from zoo.loading import load

    path = Path(pretrained).expanduser()
    if path.is_file() and path.suffix not in (".ckpt", ".yaml", ".yml"):
        return read_state_dict(path)
    return load(pretrained).state_dict()
