"""Between a model before training and after it: averages, the paths between, what they cost."""

from toolkit.averaging.average import average
from toolkit.averaging.line import barriers, interpolate
from toolkit.averaging.parts import PartSearch, search_parts
from toolkit.averaging.path import bezier_bend

__all__ = [
    "PartSearch",
    "average",
    "barriers",
    "bezier_bend",
    "interpolate",
    "search_parts",
]
