"""The row that writes the kept or the selected pairs to a file, and says how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import ipywidgets as w

from toolkit.plots import html_text
from toolkit.widgets.panels.controls import WIDE, row


class ExportRow:
    """Path, format, which pairs, a button, and a sentence.

    Args:
        export: Writes pairs, given a path, a format and which; returns where, and how many.
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
        self.button = w.Button(description="Export", icon="download", layout={"width": "100px"})
        self.said = w.HTML()
        for drop in (self.which, self.format):
            drop.observe(lambda change: event(self._rename, change["old"], change["new"]), "value")
        self.button.on_click(lambda _: event(self._write))
        parts = [self.which, self.path, self.format, self.button]
        self.widget = w.VBox([row(*parts, grid_gap="4px 10px"), self.said])
        for name, widget in {"de-path": self.path, "de-format": self.format,
                             "de-export": self.button, "de-said": self.said}.items():  # fmt: skip
            widget.add_class(name)

    def _rename(self, old: str, new: str) -> None:
        """Let the suggested name follow the choice, but leave a name that the user gave."""
        head, dot, tail = self.path.value.rpartition(".")
        if head == old:
            self.path.value = f"{new}{dot}{tail}"
        elif tail == old:
            self.path.value = f"{head}{dot}{new}"

    def _write(self) -> None:
        with suppress(ValueError, OSError, ImportError):  # the sentence says what went wrong
            self.export(self.path.value, self.format.value, self.which.value)

    def export(self, path, format: str, which: str):
        """Write the pairs and say so; say why not before an error goes on to the caller."""
        try:
            written, count = self._export(path, format, which)
        except (ValueError, OSError, ImportError) as error:
            self.said.value = f"<b>Nothing was written</b>: {html_text(str(error))}"
            raise
        pairs = "pair" if count == 1 else "pairs"
        self.said.value = (
            f"<b>Wrote {count:,} {which} {pairs}</b> to <code>{html_text(str(written.absolute()))}"
            f"</code>; <code>tk.load_pairs({html_text(repr(str(written)))})</code> reads them."
        )
        return written
