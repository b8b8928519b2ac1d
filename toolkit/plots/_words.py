"""The names of regimes and columns: their words, colours and markers, in one place each."""

from typing import NamedTuple

from toolkit.plots._palette import OKABE_ITO


class Regime(NamedTuple):
    """How a regime is drawn and said.

    Attributes:
        words: what it means.
        color: of its points and its dot.
        marker: of its points.
        tint: of its region, where a picture has one.
        region: the name of that region.
    """

    words: str
    color: str
    marker: str
    tint: str = "#EEEEEE"
    region: str = ""


REGIMES = {
    "ideal": Regime("chosen rises, rejected falls", OKABE_ITO["green"], "o", "#DDF1EA",
                    "ideal: chosen ↑  rejected ↓"),
    "both_down": Regime("both fall", OKABE_ITO["vermillion"], "v", "#F9E3D5", "both fall"),
    "both_up": Regime("both rise", OKABE_ITO["blue"], "^", "#D9EAF5", "both rise"),
    "reversed": Regime("chosen falls, rejected rises", "#555555", "X", "#EEEEEE",
                       "chosen ↓  rejected ↑"),
    "unchanged": Regime("neither moves (first order)", "#999999", "s"),
}  # fmt: skip


def regime_of(name) -> Regime:
    """The regime of this name; another name is drawn in grey and said as it is.

    Example:
        >>> regime_of("both_up").words, regime_of("odd").words
        ('both rise', 'odd')
    """
    return REGIMES.get(name) or Regime(str(name), "#555555", "o")


class Column(NamedTuple):
    """What a column holds.

    Attributes:
        label: its short name.
        meaning: its unit, or how to read it.
        axis: along an axis or beside a scale, where label and meaning do not make it.
        low: what the low end of a colour scale means.
        high: what its high end means.
    """

    label: str
    meaning: str = ""
    axis: str = ""
    low: str = "negative"
    high: str = "positive"

    def along(self) -> str:
        """What stands along an axis or beside a scale."""
        return self.axis or (f"{self.label} ({self.meaning})" if self.meaning else self.label)


_ALIKE = "higher: more alike inside the model"
# of a response, once per side
RESPONSE_COLUMNS = {
    "{}_logps": Column("log-probability", "nats, sum over tokens"),
    "ref_{}_logps": Column("reference log-probability", "nats"),
    "{}_length": Column("scored tokens", "tokens"),
    "{}_sq_norm": Column("squared gradient norm", "(nats per parameter unit)²"),
    "d_{}": Column("loss weight d", "how hard the loss pulls"),
    "{}_slack": Column("slack", "positive: moves the wanted way"),
    "predicted_{}_delta": Column("predicted change", "nats"),
}
# of a pair, in the order in which a table shows them
COLUMNS = {
    "predicted_margin_delta": Column("predicted margin change", "nats, chosen − rejected",
                                     "predicted change of the margin, nats"),
    "inner": Column("inner product", "of the two gradients"),
    "cosine": Column("cosine", "−1 opposite … 1 the same direction",
                     "cosine of the two gradients"),
    "kappa": Column("κ", "DPO: below 1 is ideal"),
    "band_position": Column("band position", "between −1 and 1 is ideal; n/a: always ideal",
                            "band position (−1 … 1 is ideal)"),
    "ches": Column("CHES", _ALIKE, "CHES (higher: more alike)"),
    "ln_ches": Column("length-normalised CHES", _ALIKE,
                      "length-normalised CHES (higher: more alike)"),
    "neg_edit_distance": Column("negative edit distance", "0: the same text"),
    "last_hidden_inner": Column("last-hidden inner product", "of the two last states",
                                "inner product of the two last states"),
}  # fmt: skip
_AXES = {
    "predicted_chosen_delta": "predicted change of chosen log-probability, nats",
    "predicted_rejected_delta": "predicted change of rejected log-probability, nats",
    "chosen_logps": "chosen log-probability, nats",
    "rejected_logps": "rejected log-probability, nats",
    "length_difference": "rejected length − chosen length, tokens",
}
_FALLS = {"low": "falls", "high": "rises"}
_FELL = {"low": "fell", "high": "rose"}
# of a token: a column of the same name can hold something else in a frame of pairs
TOKEN_COLUMNS = {
    "predicted_delta": Column("predicted change of each token's log-probability, nats", **_FALLS),
    "relative_delta": Column(
        "each token's share of a step too large for first order, beside the largest (no nats)",
        **_FALLS,
    ),
    "with_chosen": Column("inner product with the chosen gradient",
                          low="raising chosen lowers it", high="raising chosen raises it"),
    "with_rejected": Column("inner product with the rejected gradient",
                            low="lowering rejected raises it", high="lowering rejected lowers it"),
    "logp": Column("log-probability of each token, nats", low="surprising", high="certain"),
    **{
        words: Column(words, **_FELL)
        for words in (
            "change of each token's log-probability since step 0, nats",
            "actual change of each token's log-probability in this step, nats",
        )
    },
    "chosen": Column("contribution to the chosen log-probability, nats",
                     low="lowers it", high="raises it"),
    "rejected": Column("contribution to the rejected log-probability, nats",
                       low="lowers it", high="raises it"),
    "margin": Column("contribution to chosen − rejected, nats",
                     low="towards rejected", high="towards chosen"),
}  # fmt: skip


def along_axis(name: str) -> str | None:
    """What stands along an axis that shows a column of pairs; None for a column of the user's.

    Example:
        >>> along_axis("kappa"), along_axis("mine")
        ('κ (DPO: below 1 is ideal)', None)
    """
    return _AXES.get(name) or (COLUMNS[name].along() if name in COLUMNS else None)
