"""The part of an explorer that lives in the browser alone: keys, and how a table is sorted."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class Browser(anywidget.AnyWidget):
    """Frees the keyboard inside explorers, and tells Python the order of a table's rows.

    JupyterLab takes the arrow keys and ipympl every key; with it in the page each control of an
    explorer gets the keys that it understands, and Tab goes on from a figure as from any control.
    """

    _esm = Path(__file__).with_name("browser.js")

    table = traitlets.Unicode(help="key of the table, empty for none").tag(sync=True)
    rows = traitlets.List(traitlets.Int(), help="its rows as sorted and searched").tag(sync=True)

    def __init__(self, table: str = ""):
        super().__init__(table=table)
        self.layout.display = "none"
