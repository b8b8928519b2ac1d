"""What could stop the fall: rules that change how hard a step pulls on each response."""

from toolkit.remedies.bound import Bound, bound
from toolkit.remedies.rule_formulas import UPDATE_RULES, rule_table
from toolkit.remedies.update_rules import UpdateRule, check_rule

__all__ = ["UPDATE_RULES", "Bound", "UpdateRule", "bound", "check_rule", "rule_table"]
