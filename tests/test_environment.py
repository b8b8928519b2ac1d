"""pyproject.toml, constraints.txt, environment.yml and the Makefile must say the same thing."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What the CUDA build of torch brings along; torch itself pins these exactly.
CUDA_BUILD = re.compile(r"nvidia-|cuda-|triton$")


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in constraint_lines())


def requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def installed_version(name: str) -> str | None:
    try:
        return Version(metadata.version(name)).public
    except metadata.PackageNotFoundError:
        return None


def installed_closure() -> set[str]:
    """Names of everything installed that the project and its extras pull in."""
    seen: set[tuple[str, str]] = set()
    queue = [(req.name, extra) for req in requirements() for extra in ("", *req.extras)]
    while queue:
        name, extra = queue.pop()
        key = (canonicalize_name(name), extra)
        if key in seen or CUDA_BUILD.match(key[0]) or installed_version(name) is None:
            continue
        seen.add(key)
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [(requirement.name, inner) for inner in ("", *requirement.extras)]
    return {name for name, _ in seen}


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_constraints_are_exact_public_sorted_and_unique():
    names = []
    for line in constraint_lines():
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9A-Za-z.]*)", line)
        assert match, f"constraints.txt: {line!r} is not name==version without a local tag"
        names.append(match[1])
    assert names == sorted(set(names))


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_has_a_pin_in_its_range(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt has no line for {requirement.name}"
    assert requirement.specifier.contains(pin), f"{requirement} does not allow the pin {pin}"


def test_installed_versions_are_the_pinned_ones():
    installed = {name: installed_version(name) for name in pins()}
    different = {
        name: f"installed {version}, pinned {pins()[name]}"
        for name, version in installed.items()
        if version is not None and Version(version) != Version(pins()[name])
    }
    assert not different
    assert installed["torch"] is not None


def test_indirect_dependencies_are_pinned_too():
    tools = {"pip", "setuptools", "wheel"}
    assert installed_closure() - pins().keys() - tools == set()


def test_conda_environment_installs_this_project_with_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    python = next(item.split("=")[1] for item in conda if item.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert "-c constraints.txt" in pip
    assert "-e .[lab]" in pip
    # Other versions live in constraints.txt alone: nothing here may pin one a second time.
    assert set(conda) == {f"python={python}", "pip", f"pytorch-cpu={pins()['torch']}"}
    assert all(line.startswith("-") for line in pip)


def test_python_floor_is_the_same_everywhere():
    floor = PROJECT["requires-python"].removeprefix(">=")
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert ruff["target-version"] == f"py{floor.replace('.', '')}"
    assert f"sys.version_info < ({floor.replace('.', ', ')})" in (ROOT / "Makefile").read_text()


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_make_targets_that_documents_name_exist():
    files = [ROOT / "README.md", ROOT / ".ci" / "run", *ROOT.glob("*/README.md")]
    code = "\n".join(
        span
        for path in files
        for span in re.findall(r"```.*?```|`[^`]+`|^make .*$", path.read_text(), flags=re.S | re.M)
    )
    named = set(re.findall(r"(?:^|`|&& )make ([a-z][a-z-]*)", code, flags=re.M))
    assert named >= {"test"}
    assert named - makefile_targets() == set()
    wanted = {"lab", "test", "fuzz", "bench", "notebooks", "tiny-model"}
    assert wanted <= makefile_targets()


def test_files_that_the_makefile_runs_exist():
    text = (ROOT / "Makefile").read_text()
    named = re.findall(r"\b(?:data|tests|notebooks|benchmarks)/[\w./]+\.\w+", text)
    assert len(named) >= 4
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_folder_of_the_package_is_shipped():
    """Packages are found by their ``__init__.py``: a folder without one stays out of the wheel."""
    folders = {path.parent for path in (ROOT / "toolkit").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
