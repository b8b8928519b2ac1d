"""What could stop the fall: rules that change how hard a step pulls on each response."""

from toolkit.remedies.bound import Bound, bound
from toolkit.remedies.constraints import Constrained, check_start, check_update
from toolkit.remedies.masks import contrast_only, mask_frame
from toolkit.remedies.rule_formulas import UPDATE_RULES, rule_table
from toolkit.remedies.update_rules import UpdateRule

__all__ = [
    "UPDATE_RULES",
    "Bound",
    "Constrained",
    "UpdateRule",
    "bound",
    "check_start",
    "check_update",
    "contrast_only",
    "mask_frame",
    "rule_table",
]
