"""Packs the shipped model and pairs into a wheel; everything else stands in pyproject.toml.

They live in ``data/``, beside the scripts that make them; an installed package has no folder beside
it, so a wheel holds them as ``toolkit/_shipped/``. MANIFEST.in does the same for a source archive.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = Path(__file__).resolve().parent / "data"


class BuildWithData(build_py):
    """Copies what ``load_model()`` and ``load_pairs("stance")`` read."""

    def run(self) -> None:
        """Build as usual, then add the data."""
        super().run()
        if self.editable_mode:
            return  # the repository's own data/ is found
        for file in [*DATA.glob("*.jsonl"), *(DATA / "tiny_model").iterdir()]:
            target = Path(self.build_lib, "toolkit", "_shipped", file.relative_to(DATA))
            self.mkpath(str(target.parent))
            copyfile(file, target)


setup(cmdclass={"build_py": BuildWithData})
