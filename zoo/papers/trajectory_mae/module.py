"""Masked pre-training on vectorised scenes (Li et al., IROS 2024, arXiv 2309.10121).

Shape letters: B scenes, A road users, L lanes, M masked lanes, P visible polylines, Q queries, K modes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.driving.features import AGENT_VALUES, LANE_VALUES, MAX_PIECES, MAX_STEPS
from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.optim import warmup_cosine
from zoo.papers.trajectory_mae import losses, weights
from zoo.papers.trajectory_mae.inputs import preprocess_scene
from zoo.papers.trajectory_mae.masking import (
    Masks,
    draw_masks,
    gather_first,
    lane_queries,
    sincos,
    trajectory_queries,
    turn_agents,
    turn_lanes,
)
from zoo.papers.trajectory_mae.network import MaskedDecoder, ResidualHead, VectorNetEncoder

Batch = dict[str, Tensor]
LANE_XY, STEP_XY = (9, 8), (2, 3)  # where a lane vector's and a step's end point stand
POLYLINE = 5  # where a lane vector says which polyline of the scene it belongs to


@dataclass(frozen=True)
class MAEOutput:
    """What one step gives.

    Attributes:
        loss: the training objective, the mean of `loss_per_scene` (B,).
        masks: the draws. encoded: (B, P, D) visible polylines after the global graph; visible: (B, P).
        queries: (B, Q, D); query_valid: (B, Q).
        lanes, lane_target: (B, M, 9, 12) prediction and truth of masked lanes; lane_masked, lane_length: (B, M).
        trajectory: (B, K, 49, 10), trajectory_target: (B, 49, 10); mode_errors: (B, K).
    """

    loss: Tensor
    loss_per_scene: Tensor
    masks: Masks
    encoded: Tensor
    visible: Tensor
    queries: Tensor
    query_valid: Tensor
    lanes: Tensor
    lane_target: Tensor
    lane_masked: Tensor
    lane_length: Tensor
    trajectory: Tensor
    trajectory_target: Tensor
    mode_errors: Tensor


class TrajectoryMAE(ZooModule):
    """Pre-trains VectorNet's encoder: hide half of the lanes, or the agent's trajectory, and reconstruct them.

    Args:
        width: D; at least 20, the two layouts of a vector share the columns. depth: sub-graph attention layers.
        modes: trajectory hypotheses; the best one is trained.
        mask_ratio: share of the lanes that is hidden.
        map_probability: how often lanes are hidden rather than the trajectory. 0.7 is the paper's combined strategy,
            1 map only, 0 trajectory only.
        rotate: turn each scene by a random angle.
        official_mask: the released decoder mask, which hides the visible polylines from the queries: the encoder then
            gets no gradient at all. For comparisons only.
        official_padding: let padding into attention and maximum as the released code does; see `VectorNetEncoder`.
        normalise: feed and reconstruct features in units of their size instead of raw metres and indices (released).
            Raw, the positions that tell the queries apart drown in coordinates of tens of metres, and the outputs take
            thousands of steps to grow to that size: short pre-training then learns nothing.
        lr: Adam's rate, constant as released, or with `cosine` falling to 0.
        encoder_lr: the encoder's rate; None takes `lr`, as released. A short run wants it far below `lr`: until the
            decoders look at the visible polylines, the encoder's gradient is noise, which Adam turns into full steps.
        warmup_epochs: epochs over which the rates rise from 0, before the `cosine`.
    """

    # The 0.05 term for modes not yet used looks at the batch of a device, in order.
    per_device_loss: ClassVar[bool] = True

    def __init__(
        self,
        width: int = 128,
        depth: int = 3,
        modes: int = 6,
        mask_ratio: float = 0.5,
        map_probability: float = 0.7,
        rotate: bool = True,
        official_mask: bool = False,
        official_padding: bool = False,
        normalise: bool = False,
        lr: float = 1.0e-4,
        cosine: bool = False,
        encoder_lr: float | None = None,
        warmup_epochs: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if width < 20 or width % 4:
            raise ZooError(f"width is a multiple of 4 and at least 20, not {width}.")
        if not 0 < mask_ratio <= 1:
            raise ZooError(f"mask_ratio is a share above 0 and up to 1, not {mask_ratio}.")
        if not 0 <= map_probability <= 1:
            raise ZooError(f"map_probability lies from 0 to 1, not at {map_probability}.")
        for rate in (lr, encoder_lr):
            if rate is not None and rate <= 0:
                raise ZooError(f"A learning rate lies above 0, not at {rate}.")
        if warmup_epochs < 0:
            raise ZooError(f"warmup_epochs is at least 0, not {warmup_epochs}.")
        if warmup_epochs and not cosine:
            raise ZooError("warmup_epochs belongs to the schedule of `cosine: true`; without it the rate is constant.")
        self.backbone = VectorNetEncoder(width, depth, official_padding, normalise)
        self.traj_mask_token = nn.Parameter(torch.zeros(1, AGENT_VALUES))
        self.map_mask_token = nn.Parameter(torch.zeros(1, LANE_VALUES))
        # Kept because official checkpoints hold them: the first is a constant, the second a scratch pad (the table of
        # whichever lane was masked last) that is never read.
        self.traj_pos_enc = nn.Parameter(sincos(torch.arange(MAX_STEPS), width), requires_grad=False)
        self.map_pos_enc = nn.Parameter(torch.zeros(MAX_PIECES, width), requires_grad=False)
        self.map_decoder = MaskedDecoder(width, official_mask)
        self.traj_decoder = MaskedDecoder(width, official_mask)
        self.pred_map = ResidualHead(width, LANE_VALUES)
        self.pred_traj = ResidualHead(width, modes * AGENT_VALUES)
        nn.init.normal_(self.traj_mask_token, std=0.02)
        nn.init.normal_(self.map_mask_token, std=0.02)

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

    def reconstruct(self, batch: Batch, masks: Masks | None = None) -> MAEOutput:
        """One step on a batch of whole 5 s scenes. `masks` is drawn here unless given."""
        h = self.hparams
        agent_length, lane_length = batch["agent_length"], batch["lane_length"]
        if masks is None:
            masks = draw_masks(lane_length, h.map_probability, h.mask_ratio, rotate=h.rotate)
        agents, lanes = turn_agents(batch["agents"], masks.theta), turn_lanes(batch["lanes"], masks.theta)

        # 1. What stays visible goes through the encoder.
        trajectory_masked = ~masks.map_masked
        first = torch.arange(agent_length.shape[1], device=agents.device) == 0
        agent_length = agent_length.masked_fill(trajectory_masked.unsqueeze(1) & first, 0)
        kept = (lane_length > 0) & ~masks.lanes
        kept_length = gather_first(lane_length.masked_fill(~kept, 0), kept)
        encoder = self.backbone
        agent_states, lane_states, _ = encoder.encode_polylines(
            agents, agent_length, gather_first(lanes, kept), kept_length
        )
        has_agent, has_lane = agent_length > 0, kept_length > 0
        lane_states = encoder.fuse(agent_states, has_agent, lane_states, has_lane)
        visible = torch.cat([has_agent, has_lane], dim=1)
        encoded = encoder.relate(torch.cat([agent_states, lane_states], dim=1), visible)

        # 2. Queries: the first vector of each masked polyline, tokens for the rest, positions on top.
        polyline = gather_first(lanes[:, :, 0, POLYLINE], masks.lanes)
        target = agents[:, 0] / encoder.agent_scale
        lane_target = gather_first(lanes, masks.lanes) / encoder.lane_scale
        lane_masked = gather_first(masks.lanes, masks.lanes)
        masked_length = gather_first(lane_length, masks.lanes) * lane_masked
        queries, query_valid = self._queries(target, trajectory_masked, lane_target, polyline, lane_masked)

        # 3. Each decoder runs on its own scenes (the released code runs both on all; a loss looks at its own anyway).
        def decode(decoder: nn.Module, head: nn.Module, chosen: Tensor, count: int) -> Tensor:
            rows = chosen.nonzero().squeeze(1)
            out = head(decoder(queries[rows, :count], query_valid[rows, :count], encoded[rows], visible[rows]))
            return out.new_zeros(len(chosen), *out.shape[1:]).index_copy(0, rows, out)

        found = decode(self.map_decoder, self.pred_map, masks.map_masked, lane_masked.shape[1] * MAX_PIECES)
        steps = decode(self.traj_decoder, self.pred_traj, trajectory_masked, MAX_STEPS)
        with full_precision(agents.device.type):
            found = found.float().unflatten(1, (-1, MAX_PIECES))
            steps = steps.float().unflatten(-1, (h.modes, AGENT_VALUES)).transpose(1, 2)
            lane_loss = losses.lane_loss(found, lane_target, lane_masked)
            step_loss, mode_errors = losses.trajectory_loss(steps, target, trajectory_masked)
            per_scene = lane_loss + step_loss
            # Out again in metres, seconds and numbers.
            found, lane_target = found * encoder.lane_scale, lane_target * encoder.lane_scale
            steps, target = steps * encoder.agent_scale, target * encoder.agent_scale
        return MAEOutput(
            per_scene.mean(), per_scene, masks, encoded, visible, queries, query_valid, found, lane_target,
            lane_masked, masked_length, steps, target, mode_errors,
        )  # fmt: skip

    def _queries(
        self, target: Tensor, trajectory_masked: Tensor, lane_target: Tensor, polyline: Tensor, lane_masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        width = self.hparams.width
        ours = trajectory_queries(target, torch.full_like(trajectory_masked, MAX_STEPS), self.traj_mask_token, width)
        theirs = lane_queries(lane_target, polyline, self.map_mask_token, width)
        count = max(ours.shape[1], theirs.shape[1])
        ours, theirs = (nn.functional.pad(q, (0, 0, 0, count - q.shape[1])) for q in (ours, theirs))
        valid = lane_masked.repeat_interleave(MAX_PIECES, dim=1)
        valid = nn.functional.pad(valid, (0, count - valid.shape[1]))
        steps = torch.arange(count, device=target.device) < MAX_STEPS
        valid = torch.where(trajectory_masked.unsqueeze(1), steps, valid)
        return torch.where(trajectory_masked[:, None, None], ours, theirs) * valid.unsqueeze(-1), valid

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.reconstruct(batch)
        self._log("train", out, batch)
        return out.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._log("val", self.reconstruct(batch, self.fixed_masks(batch, batch_idx)), batch)

    def fixed_masks(self, batch: Batch, seed: int) -> Masks:
        """The same draws at every call, so that epochs can be compared."""
        generator = torch.Generator().manual_seed(seed)
        lane_length = batch["lane_length"]
        draws = [torch.rand(shape, generator=generator) for shape in (len(lane_length), len(lane_length))]
        draws.append(torch.rand(lane_length.shape, generator=generator))
        theta, option, noise = (draw.to(lane_length.device) for draw in draws)
        h = self.hparams
        return draw_masks(
            lane_length, h.map_probability, h.mask_ratio,
            theta_draw=theta, option_draw=option, lane_noise=noise, rotate=h.rotate,
        )  # fmt: skip

    def _log(self, stage: str, out: MAEOutput, batch: Batch) -> None:
        validating = stage == "val"
        size = len(batch["lane_length"])
        options = dict(
            prog_bar=validating, on_step=not validating, on_epoch=validating, sync_dist=validating, batch_size=size
        )
        self.log(f"{stage}/loss", out.loss.detach(), **options)
        errors = reconstruction_errors(out)
        for name, (value, count) in errors.items():
            if count:
                self.log(f"{stage}/{name}", value, **{**options, "prog_bar": False, "batch_size": count})

    def baselines(self) -> dict[str, tuple[str, str, float]]:
        """What to hold logged metrics against, for a report callback."""
        value = self.trainer.callback_metrics.get("val/lane_straight_error")
        if value is None:
            return {}
        return {"val/lane_error": ("masked lanes, end-point error (m)", "first vector drawn on", float(value))}

    def figures(self, batch: Batch) -> dict[str, Any]:
        """Pictures of a batch, for the Figures callback."""
        from zoo.papers.trajectory_mae.figures import draw_reconstructions  # matplotlib is only needed here

        return {"reconstructions": draw_reconstructions(self.reconstruct(batch, self.fixed_masks(batch, 0)), batch)}

    def configure_optimizers(self) -> Any:
        h = self.hparams
        encoder = list(self.backbone.parameters())
        inside = {id(parameter) for parameter in encoder}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in inside]
        # The released code has a second Adam, with the same rate, for the heads: the same updates.
        optimizer = torch.optim.Adam(
            [
                {"name": "encoder", "params": encoder, "lr": h.lr if h.encoder_lr is None else h.encoder_lr},
                {"name": "decoders", "params": rest, "lr": h.lr},
            ]
        )
        if not h.cosine:
            return optimizer
        schedule = warmup_cosine(self, optimizer, lr=h.lr, warmup_epochs=h.warmup_epochs)  # scales both rates alike
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def reconstruction_errors(out: MAEOutput) -> dict[str, tuple[Tensor, int]]:
    """End-point errors in metres, each with the number of polylines it is a mean of.

    lane_error of masked lanes; lane_straight_error of their first, visible vector drawn on; trajectory_error of the
    best mode of masked trajectories. (The loss itself also counts indices and flags, which can dominate it.)
    """
    with torch.no_grad():
        masked, length = out.lane_masked, out.lane_length
        error = losses.end_point_errors(out.lanes, out.lane_target, length, LANE_XY)
        first = out.lane_target[:, :, :1]
        step = first[..., [9, 8]] - first[..., [11, 10]]
        straight = first.expand_as(out.lane_target).clone()
        number = torch.arange(MAX_PIECES, device=length.device)[None, None, :, None]
        straight[..., [9, 8]] = first[..., [9, 8]] + number * step
        baseline = losses.end_point_errors(straight, out.lane_target, length, LANE_XY)
        hidden = ~out.masks.map_masked
        ends = (out.trajectory[:, :, -1, list(STEP_XY)] - out.trajectory_target[:, None, -1, list(STEP_XY)]).norm(
            dim=-1
        )
        lanes, scenes = int(masked.sum()), int(hidden.sum())
        return {
            "lane_error": ((error * masked).sum() / max(lanes, 1), lanes),
            "lane_straight_error": ((baseline * masked).sum() / max(lanes, 1), lanes),
            "trajectory_error": ((ends.amin(1) * hidden).sum() / max(scenes, 1), scenes),
        }
