"""Data for ELECTRA: any text, packed or built into pairs as the official script does it."""

from __future__ import annotations

from datamodules.text_pretraining import TextPretrainDataModule


class ElectraDataModule(TextPretrainDataModule):
    """`TextPretrainDataModule` under the room's name; `examples: electra` gives the official builder's pairs."""
