"""Well-Read Students: compact BERTs, pre-trained and then distilled."""

from zoo.nn.text import require

require("transformers")
from zoo.papers.well_read_students.distillation import Distillation  # noqa: E402
from zoo.papers.well_read_students.module import CompactBert  # noqa: E402

__all__ = ["CompactBert", "Distillation"]
