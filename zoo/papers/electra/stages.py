"""What a step gives, which modes go together, and where the second of two stages starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zoo.errors import ZooError
from zoo.nn.text_mlm import Masked

if TYPE_CHECKING:
    from zoo.papers.electra.module import Electra


@dataclass(frozen=True)
class ElectraOutput:
    """What one step gives; losses are scalars.

    Attributes:
        loss: gen_weight * gen_loss + disc_weight * disc_loss.
        mlm_loss, mlm_logits: the generator's at the prediction slots, logits (B, N, V).
        masked: what was masked.
        sampled: (B, N) the generator's tokens.
        gen_loss: what the generator learns from: mlm_loss, or for two towers their loss over all tokens.
        disc_input_ids: (B, L) what the main network reads; this and all below None for objective "mlm".
        disc_loss: the main network's loss.
        disc_labels, disc_logits: (B, L) for the objectives that detect tokens, else None.
        token_logits: (B, N, V) of "replace_mlm", (B, L, V) of "all_tokens_mlm", else None.
    """

    loss: Tensor
    mlm_loss: Tensor
    mlm_logits: Tensor
    masked: Masked
    sampled: Tensor
    gen_loss: Tensor
    disc_input_ids: Tensor | None = None
    disc_labels: Tensor | None = None
    disc_logits: Tensor | None = None
    disc_loss: Tensor | None = None
    token_logits: Tensor | None = None


def check_modes(h: Any) -> None:
    """Raises `ZooError` for hyper-parameters that do not go together."""
    if h.temperature <= 0:
        raise ZooError(f"temperature lies above 0, not at {h.temperature}.")
    if h.objective == "mlm" and h.generator != "mlm":
        raise ZooError("objective 'mlm' trains the masked language model itself: leave generator at 'mlm'.")
    if h.objective == "electric" and h.generator != "two_tower":
        raise ZooError("objective 'electric' scores tokens against two towers: set generator to 'two_tower'.")
    if h.generator in ("uniform", "none", "frozen") and h.sharing != "embeddings":
        raise ZooError(f"sharing {h.sharing!r} has no meaning without a generator that learns.")
    if h.generator == "two_tower" and h.sharing == "all":
        raise ZooError("Two towers cannot be the discriminator too: set sharing to 'embeddings' or 'none'.")
    if h.init_from is not None and h.generator != "frozen":
        raise ZooError("init_from starts the second of two stages: set generator to 'frozen' with it.")
    if not 0 < h.generator_size <= 1 or not 0 < h.generator_layers <= 1:
        raise ZooError("generator_size and generator_layers are shares of the discriminator, above 0 and at most 1.")


def start_second_stage(model: Electra) -> None:
    """Generator and discriminator become what the first stage learned (section 3.2, two-stage training).

    Raises:
        ZooError: `model.init_from` is missing, no masked language model of ELECTRA's, of another size or vocabulary.
    """
    from zoo.loading import load

    source = model.hparams.init_from
    if source is None:
        raise ZooError("The second stage needs the first: set model.init_from to a run of objective 'mlm'.")
    first = load(source)
    if not isinstance(first, type(model)) or first.hparams.objective != "mlm":
        raise ZooError(f"{source} is no masked language model of ELECTRA's (objective 'mlm').")
    mine, theirs = model.tokenizer, first.tokenizer
    if None not in (mine, theirs) and mine.get_vocab() != theirs.get_vocab():  # type: ignore[union-attr]
        raise ZooError(f"The data was cut with another tokenizer than {source}: set data.tokenizer to its own.")
    encoder = first.backbone.state_dict()
    try:
        model.backbone.load_state_dict(encoder)
        model.generator.load_state_dict(encoder)  # type: ignore[union-attr]
        model.generator_predictions.load_state_dict(first.generator_predictions.state_dict())  # type: ignore[union-attr]
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ZooError(f"{source} is of another size than this model: {reason}") from error
