"""Remedies side by side: what each did to the responses, and what it cost."""

from toolkit.remedy_comparison.bench import compare_remedies
from toolkit.remedy_comparison.plans import REMEDIES, lowest_ches

__all__ = ["REMEDIES", "compare_remedies", "lowest_ches"]
