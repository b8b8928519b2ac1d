"""Preference pairs: load, validate, encode and audit them.

A pair is a prompt with a chosen and a rejected response, as plain text or as lists of messages.
`load_pairs` reads them, `encode` turns one into token ids with the scored tokens marked, and
`audit_pairs` says, row by row, what encoding does and why a row cannot be used.

A pair, its encoding and a row of a file of pairs call their identifier `id`. Everything that speaks
of a pair calls it `pair_id`: columns of frames and of score files, attrs, results and errors.
"""

from ._audit import AUDIT_COLUMNS, audit_pairs
from ._encode import TRUNCATIONS, EncodedPair, cut_pair, encode
from ._load import load_pairs, read_pair, row_id, shipped_pairs
from ._pair import PairError, PairList, PreferencePair
from ._sources import data_folder, read_rows, resolve
from ._values import Message, RowError, Text

__all__ = [
    "AUDIT_COLUMNS",
    "TRUNCATIONS",
    "EncodedPair",
    "Message",
    "PairError",
    "PairList",
    "PreferencePair",
    "RowError",
    "Text",
    "audit_pairs",
    "cut_pair",
    "data_folder",
    "encode",
    "load_pairs",
    "read_pair",
    "read_rows",
    "resolve",
    "row_id",
    "shipped_pairs",
]
