"""Well-Read Students: compact BERTs, pre-trained and then distilled."""

__domain__ = "text"

from zoo.nn.text import text_packages

with text_packages():
    from zoo.papers.well_read_students.distillation import Distillation
    from zoo.papers.well_read_students.module import CompactBert

__all__ = ["CompactBert", "Distillation"]
