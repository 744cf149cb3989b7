"""Starters: what `zoo new` writes for a researcher's own data, one for each task, built upon the rooms' recipes."""

from zoo.starters.catalogue import STARTERS, find_starter, fitting_models
from zoo.starters.starter import Starter, Variant
from zoo.starters.writing import write_starter

__all__ = ["STARTERS", "Starter", "Variant", "find_starter", "fitting_models", "write_starter"]
