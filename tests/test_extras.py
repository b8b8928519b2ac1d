"""What pip installs: a wheel with its data, scoring without JupyterLab, commands for extras."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from toolkit.extras import PROJECT, require

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The packages of the extra, and what they alone bring.
LAB = ("jupyterlab", "ipykernel", "ipywidgets", "ipympl", "itables", "anywidget", "IPython")
# What needs the wheel's model, pairs, engines and figures, on a machine without JupyterLab.
SERVER = f"""
import sys
sys.modules.update(dict.fromkeys({LAB!r}))  # as if none of them were installed
import toolkit as tk
policy, pairs = tk.load_model(), tk.load_pairs("stance", limit=2)
scores = tk.score_pairs(policy, pairs, measures=("similarity",))
tk.plots.score_histogram(scores, "ln_ches")
print(tk.__file__, *tk.shipped_pairs())
try:
    tk.PairExplorer
except ImportError as error:
    print(error)
"""


def build(tmp_path: Path) -> Path:
    """A copy of what a build reads: building in place would leave files in the repository."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("this setuptools is older than the build asks for")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    source = tmp_path / "source"
    for name in names.split("\0"):
        keep = name.startswith(("toolkit/", "data/")) or (name and "/" not in name)
        if keep and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    return source


def test_a_wheel_finds_its_model_and_pairs_and_scores_without_jupyterlab(tmp_path):
    source, target = build(tmp_path), tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, cwd=tmp_path)
    (file,) = tmp_path.glob("*.whl")
    stray = {name.split("/")[0] for name in zipfile.ZipFile(file).namelist()}
    assert stray == {"toolkit", f"{file.stem.split('-py3')[0]}.dist-info"}
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(file)]
    subprocess.run(install, check=True, cwd=tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", SERVER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    where, said = run.stdout.splitlines()
    assert where.startswith(str(target)) and "stance" in where and "bad_rows" not in where
    assert said.endswith(f'pip install "{PROJECT}[lab]"') and "ipywidgets" in said


def test_a_source_archive_holds_the_model_and_the_pairs(tmp_path):
    source = build(tmp_path)
    code = "from setuptools import build_meta as b; print(b.build_sdist('..'))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"data/stance.jsonl", "data/tiny_model/model.safetensors", "setup.py"} <= names


def test_a_missing_package_is_named_with_the_command_of_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    command = rf'lora= needs peft: pip install "{PROJECT}\[peft\]"$'
    with pytest.raises(ImportError, match=command):
        require("peft", "lora=", "json", "peft")
    require("peft", "lora=", "json")


def test_every_extra_that_is_asked_for_exists():
    asked = set()
    for path in (ROOT / "toolkit").rglob("*.py"):
        text = path.read_text()
        asked |= {part.split('"')[1] for part in text.split("require(")[1:] if part[:1] == '"'}
    assert asked and asked <= CONFIG["optional-dependencies"].keys()


def test_no_core_dependency_brings_jupyterlab():
    core = {text.split(">")[0] for text in CONFIG["dependencies"]}
    assert core.isdisjoint(LAB)
