"""Real training steps: what theory predicts for each response beside what really happens."""

from toolkit.dynamics._mass_flow import displacement_verdict, mass_flow
from toolkit.dynamics._optimizers import NAMES as OPTIMIZERS
from toolkit.dynamics._single_token import SingleTokenTheory, single_token_theory
from toolkit.dynamics._training import TrainingRun
from toolkit.dynamics._trajectory import StepRecord, Trajectory
from toolkit.dynamics.forces import FORCES
from toolkit.dynamics.loop import train
from toolkit.dynamics.prediction import predict_step

__all__ = [
    "FORCES",
    "OPTIMIZERS",
    "SingleTokenTheory",
    "StepRecord",
    "TrainingRun",
    "Trajectory",
    "displacement_verdict",
    "mass_flow",
    "predict_step",
    "single_token_theory",
    "train",
]
