"""Where the probability goes when a chosen response falls: measured, judged, and by theory."""

from toolkit.displacement.drawdown import falls
from toolkit.displacement.flow import mass_flow
from toolkit.displacement.single_token import SingleTokenTheory, single_token_theory
from toolkit.displacement.spelling import mass_by_word
from toolkit.displacement.verdict import displacement_verdict

__all__ = [
    "SingleTokenTheory",
    "displacement_verdict",
    "falls",
    "mass_by_word",
    "mass_flow",
    "single_token_theory",
]
