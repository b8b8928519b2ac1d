"""Optional packages: what is missing, and the one command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

PROJECT = "preference-entanglement-toolkit"


def require(extra: str, what: str, *packages: str) -> None:
    """Refuse to go on without the packages of an extra; call it before importing them.

    Args:
        extra: A row of ``[project.optional-dependencies]`` in ``pyproject.toml``.
        what: What needs them, as the user typed it.
        packages: Names to import.

    Raises:
        ImportError: One of them is not installed; it gives the install command.

    Example:
        >>> require("hub", "loading from the hub", "json")
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f'{what} needs {", ".join(missing)}: pip install "{PROJECT}[{extra}]"')
