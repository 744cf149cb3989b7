"""Pre-training on synthetic driving data for trajectory prediction."""

__domain__ = "driving"

from zoo.papers.trajectory_mae.forecaster import TrajectoryForecaster
from zoo.papers.trajectory_mae.module import TrajectoryMAE

__all__ = ["TrajectoryForecaster", "TrajectoryMAE"]
