"""The row that writes the kept or the selected pairs to a file, and says how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as w

from toolkit.plots import html_text
from toolkit.widgets.panels.controls import WIDE, row


class ExportRow:
    """Path, format, which pairs, a button, and a sentence.

    Args:
        export: Writes pairs, given a path, a format, which, and whether to replace a file; returns
            where, and how many.
        formats: The formats that there are.
        event: Runs a callback and tells the user when it fails.
    """

    def __init__(self, export: Callable, formats: Sequence[str], event: Callable):
        self._export = export
        self.which = w.Dropdown(
            options=["kept", "selected"], description="write the", style=WIDE,
            layout={"width": "165px"},
        )  # fmt: skip
        self.path = w.Text(
            "kept.jsonl", description="pairs to", style=WIDE, layout={"width": "210px"},
            placeholder="file name",
        )  # fmt: skip
        self.format = w.Dropdown(options=formats, layout={"width": "90px"})
        self.replace = w.Checkbox(
            False, description="replace", indent=False, layout={"width": "80px"},
            tooltip="replace a file that is already there",
        )  # fmt: skip
        self.button = w.Button(description="Export", icon="download", layout={"width": "100px"})
        self.said = w.HTML()
        for drop in (self.which, self.format):
            drop.observe(lambda change: event(self._rename, change["old"], change["new"]), "value")
        self.button.on_click(lambda _: event(self._write))
        parts = [self.which, self.path, self.format, self.replace, self.button]
        self.widget = w.VBox([row(*parts, grid_gap="4px 10px"), self.said])

    def _rename(self, old: str, new: str) -> None:
        """Let the suggested name follow the choice, but leave a name that the user gave."""
        head, dot, tail = self.path.value.rpartition(".")
        if head == old:
            self.path.value = f"{new}{dot}{tail}"
        elif tail == old:
            self.path.value = f"{head}{dot}{new}"

    def _write(self) -> None:
        """Write the pairs and say so, or why not."""
        path, format, which = self.path.value, self.format.value, self.which.value
        try:
            written, count = self._export(path, format, which, self.replace.value)
        except (ValueError, OSError, ImportError) as error:
            self.said.value = f"<b>Nothing was written</b>: {html_text(str(error))}"
            return
        pairs = "pair" if count == 1 else "pairs"
        self.said.value = (
            f"<b>Wrote {count:,} {which} {pairs}</b> to <code>{html_text(str(written.absolute()))}"
            f"</code>; <code>tk.load_pairs({html_text(repr(str(written)))})</code> reads them."
        )
