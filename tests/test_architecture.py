"""The rules of the layout: imports run downwards, heavy packages load late, notebooks stay thin."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "toolkit"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What each module may import directly; what those may import is allowed as well.
MAY_IMPORT = {
    "checks": set(),
    "extras": set(),
    "hub": set(),
    "pairs": {"checks", "extras", "hub"},
    "model": {"losses", "pairs"},  # of losses the names of what they read
    "losses": {"checks"},
    "gradients": {"model", "pairs"},
    "entanglements": {"losses", "gradients"},
    "similarities": {"model", "pairs"},
    "attribution": {"model", "pairs"},
    "kernel": {"gradients", "losses"},
    "remedies": {"losses", "gradients"},
    "displacement": {"losses", "model"},
    "dynamics": {"model", "entanglements", "displacement", "remedies"},
    "averaging": {"model"},
    "scoring": {"entanglements", "similarities"},
    "measurement": {"entanglements", "similarities", "attribution"},
    "loss_comparison": {"measurement"},
    "remedy_comparison": {"dynamics", "remedies", "scoring"},
    "dataset": {"scoring", "measurement"},
    "plots": set(),
}
# These stand above every module of the table.
TOP = {"widgets", "callbacks", "__main__"}
OPTIONAL = {"trl", "peft", "ray", "datasets"}
HEAVY = {"torch", "transformers", "seaborn", "matplotlib", "captum", "ipywidgets", "pandas"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def owner_of(path: Path) -> str:
    """Return the row of the layer table that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed_for(owner: str) -> set[str]:
    if owner in TOP:
        return MAY_IMPORT.keys() | TOP
    below = {owner}
    for name in MAY_IMPORT[owner]:
        below |= allowed_for(name)
    return below


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """List the dotted names that a file imports, and whether each import is inside a function."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found += [(f"{base}.{alias.name}", id(node) in inner) for alias in node.names]
    return found


def top_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imports_of(path)}


def toolkit_imports(path: Path) -> set[str]:
    """Return the rows of the table that a file imports, "toolkit" for the façade itself."""
    modules = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in source_files()}
    rows = set()
    for parts in (name.split(".") for name, _ in imports_of(path)):
        if parts[0] == "toolkit":
            known = len(parts) > 1 and parts[1] in modules
            rows.add(parts[1] if known else "toolkit")
    return rows


def code_cells(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def python_of(cell: dict) -> str:
    """Return a cell's Python without the lines that only IPython understands."""
    lines = "".join(cell["source"]).splitlines()
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)


@pytest.mark.parametrize("path", source_files(), ids=label)
def test_imports_run_downwards(path):
    owner = owner_of(path)
    if owner == "__init__":
        pytest.skip("the façade may name everything")
    known = MAY_IMPORT.keys() | TOP
    assert owner in known, f"{label(path)} is in no row of the layer table"
    upwards = toolkit_imports(path) - allowed_for(owner)
    assert not upwards, f"{label(path)} imports upwards: {sorted(upwards)}"


def test_the_layer_table_itself_has_no_circle():
    for owner in MAY_IMPORT:
        above = [name for name in MAY_IMPORT[owner] if owner in allowed_for(name)]
        assert not above


@pytest.mark.parametrize("path", source_files(), ids=label)
def test_what_is_private_stays_in_its_folder(path):
    """An underscored file belongs to its folder, an underscored name to its file."""
    own = ".".join(path.relative_to(ROOT).parent.parts)
    foreign = []
    for name, _ in imports_of(path):
        parts = name.split(".")
        hidden = [i for i, part in enumerate(parts) if part.startswith("_") and part[1:2] != "_"]
        home = ".".join(parts[: hidden[0]]) if hidden else own
        if parts[0] == "toolkit" and home != own:
            foreign.append(name)
    assert not foreign, f"{label(path)} reaches into another folder or file: {foreign}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=label)
def test_folders_only_re_export(path):
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    assert all(isinstance(node, allowed) for node in ast.parse(path.read_text()).body)


@pytest.mark.parametrize("path", source_files(), ids=label)
def test_optional_packages_are_imported_inside_functions(path):
    early = {n for n, inside in imports_of(path) if n.split(".")[0] in OPTIONAL and not inside}
    assert not early, f"{label(path)} imports {sorted(early)} at its top"


def test_plots_know_neither_torch_nor_the_rest_of_the_toolkit():
    for path in source_files():
        if owner_of(path) == "plots":
            assert top_packages(path).isdisjoint({"torch", "transformers"})


@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("toolkit", HEAVY),
        ("toolkit.pairs", {"torch", "transformers", "seaborn", "captum", "ipywidgets"}),
        # seaborn itself brings ipywidgets where it is installed.
        ("toolkit.plots", {"torch", "transformers", "captum"}),
    ],
)
def test_heavy_packages_load_late(module, late):
    code = f"import sys, {module}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert late & set(run.stdout.split()) == set()


def test_public_names_resolve_and_are_documented():
    assert inspect.getdoc(toolkit)
    assert len(toolkit.__all__) == len(set(toolkit.__all__)) > 0
    for name in toolkit.__all__:
        value = getattr(toolkit, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            # A dataclass without a docstring shows its own signature instead.
            documented = value.__doc__ and not value.__doc__.startswith(f"{name}(")
            assert documented, f"toolkit.{name} has no docstring"
    assert set(toolkit.__all__) <= set(dir(toolkit))


def test_a_module_and_a_public_name_are_never_spelt_alike():
    """``tk.similarity`` was the function, and ``import toolkit.similarity as s`` gave it too."""
    modules = {owner_of(path) for path in source_files()}
    assert modules & set(toolkit.__all__) == {"plots"}
    for name in sorted(modules - {"__init__", "__main__"}):
        given: dict = {}
        exec(f"import toolkit.{name} as given", given)
        assert given["given"] is sys.modules[f"toolkit.{name}"], name
    assert callable(toolkit.similarity) and callable(toolkit.entanglement)


def test_editors_see_every_public_name():
    jedi = pytest.importorskip("jedi")
    script = jedi.Script("import toolkit as tk\ntk.", project=jedi.Project(ROOT))
    seen = {found.name for found in script.complete(2, 3)}
    assert set(toolkit.__all__) <= seen and {"pair_stats", "PairExplorer", "plots"} <= seen


def test_there_is_no_module_for_leftovers():
    leftovers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not [label(path) for path in source_files() if path.name in leftovers]


def test_every_module_has_its_test_file():
    names = {owner_of(path).strip("_") for path in source_files()} - {"init"}
    names |= {path.stem for path in (PACKAGE / "widgets").glob("[!_]*.py")}
    tests = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    missing = [name for name in names - {"toolkit", "widgets"} if f"test_{name}.py" not in tests]
    assert not missing


@pytest.mark.parametrize("path", source_files(), ids=label)
def test_no_code_that_runs_what_it_loads(path):
    assert top_packages(path).isdisjoint(UNSAFE_MODULES)
    assert UNSAFE_CALLS.isdisjoint(name for name, _ in imports_of(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            assert ast.unparse(node.value) == "False", f"{label(path)} line {node.value.lineno}"


def test_every_module_says_what_it_is():
    trees = {label(path): ast.parse(path.read_text()) for path in source_files()}
    silent = [name for name, tree in trees.items() if not ast.get_docstring(tree)]
    assert not silent


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=label)
def test_notebook_is_saved_whole(notebook):
    content = json.loads(notebook.read_text())
    # Without its kernelspec JupyterLab opens a dialog over the notebook.
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook.stat().st_size < 1_000_000
    cells = [cell for cell in code_cells(notebook) if "".join(cell["source"]).strip()]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=label)
def test_notebook_holds_thin_calls(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, FUNCTIONS):
                assert node.end_lineno - node.lineno + 1 <= 5, f"{node.name} is too long"
            assert not isinstance(node, ast.ClassDef), f"class {node.name} belongs in toolkit/"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=label)
def test_notebook_checks_some_of_its_output(notebook):
    marked = [c for c in code_cells(notebook) if "# NBVAL_CHECK_OUTPUT" in "".join(c["source"])]
    assert marked, "mark the cells whose numbers matter with # NBVAL_CHECK_OUTPUT"
