"""Real training steps: what theory predicts for each response beside what really happens."""

from toolkit.dynamics._optimizers import NAMES as OPTIMIZERS
from toolkit.dynamics._training import TrainingRun
from toolkit.dynamics._trajectory import StepRecord, Trajectory
from toolkit.dynamics.forces import FORCES
from toolkit.dynamics.loop import train
from toolkit.dynamics.prediction import predict_step
from toolkit.dynamics.run_settings import RunSettings

__all__ = [
    "FORCES",
    "OPTIMIZERS",
    "RunSettings",
    "StepRecord",
    "TrainingRun",
    "Trajectory",
    "predict_step",
    "train",
]
