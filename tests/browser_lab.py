"""For browser tests: a private JupyterLab, and a page that uses a notebook as people do."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
from playwright.sync_api import Page, sync_playwright

TOKEN = "browser-test"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Every cell stays in the page (no virtual scrolling), and nothing is written back behind the test.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")
SPLASH = "#jupyterlab-splash"
IDLE_KERNEL = """() => {
    const indicator = document.querySelector('.jp-Notebook-ExecutionIndicator');
    const kernel = document.querySelector('.jp-NotebookPanel-toolbar .jp-KernelName');
    return indicator?.dataset.status === 'idle' && /Python/.test(kernel?.innerText ?? '');
}"""
# What the cells hold, as JupyterLab knows it: a page shows an error as it shows a warning.
CELLS = """[...window.jupyterapp.shell.currentWidget.content.model.cells]
  .map(cell => cell.sharedModel.toJSON()).filter(cell => cell.cell_type === 'code')"""
ERRORS = f"""() => {CELLS}.flatMap(cell => cell.outputs)
  .filter(output => output.output_type === 'error').map(output => output.traceback.join('\\n'))"""
DONE_OR_FAILED = f"""() => ({ERRORS})().length || {CELLS}.every(
  cell => cell.execution_count !== null || String(cell.source).trim() === '')"""


def find_chromium() -> str | None:
    """Return the path of a Chromium, the one in `CHROMIUM` first, or None."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else CHROMIUM_NAMES
    return next((path for path in map(shutil.which, names) if path), None)


def write_notebook(path: Path, *sources: str) -> None:
    """Write a notebook of code cells that JupyterLab opens without asking for a kernel."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _private_environment(home: Path, theme: str) -> dict[str, str]:
    """Point every place that Jupyter, IPython and matplotlib write to at `home`."""
    settings = home / "settings"
    for name, values in (SETTINGS | {"apputils-extension/themes": {"theme": theme}}).items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return os.environ | {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
    }


def _wait_until_served(url: str, process: subprocess.Popen, log: Path, seconds: float) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            opener.open(f"{url}/api/status?token={TOKEN}", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start within {seconds:.0f} s:\n{log.read_text()}")


@contextlib.contextmanager
def serve_lab(
    notebooks: Path, scratch: Path, *, theme: str = "JupyterLab Light", seconds: float = 600
) -> Iterator[str]:
    """Serve a copy of the folder `notebooks` from JupyterLab and yield the address."""
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.copytree(notebooks, scratch / "notebooks")
    port, log = _free_port(), scratch / "lab.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--ServerApp.root_dir={scratch / 'notebooks'}", "--LabApp.news_url=None"]
    command += ["--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    environment = _private_environment(scratch / "home", theme)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_served(url, process, log, seconds)
            yield url
        finally:
            # SIGTERM lets the server stop its kernels; without it they would outlive the test.
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


class NotebookPage:
    """One notebook open in JupyterLab, with what the browser complained about."""

    def __init__(self, page: Page, url: str, shots: Path):
        self.page, self.url, self.shots = page, url, shots
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note_outside)

    def _note_outside(self, request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:", self.url.replace("http", "ws"))):
            self.outside.append(request.url)

    def open(self, name: str, *, seconds: float = 600) -> None:
        """Open a notebook by file name in a clean workspace and wait for its kernel."""
        self.page.goto(f"{self.url}/lab/tree/{name}?token={TOKEN}&reset", wait_until="commit")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=seconds * 1000)
        for cover in (".jp-Spinner", SPLASH):
            self.page.wait_for_selector(cover, state="detached", timeout=seconds * 1000)
        self.wait_for_idle_kernel(seconds)

    def run_all(self, *, seconds: float = 900) -> None:
        """Run > Run All Cells, then wait until every cell has run.

        Raises:
            AssertionError: with the tracebacks, when a cell fails.
        """
        # Saved execution counts would look like a finished run.
        self._menu("Edit", "Clear Outputs of All Cells")
        self._menu("Run", "Run All Cells")
        self.wait_until_run(seconds)
        if failures := self.cell_errors():
            raise AssertionError("\n\n".join(failures))

    def run_cell(self, place: int, *, wait: bool = True, seconds: float = 120) -> None:
        """Run the code cell at this place again; with ``wait`` until it has."""
        self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt").nth(place).click()
        self.page.keyboard.press("Control+Enter")
        if wait:
            self.wait_until_run(seconds)

    def restart_kernel(self, *, seconds: float = 90) -> None:
        """Kernel > Restart Kernel, outputs kept."""
        self._menu("Kernel", "Restart Kernel…")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self.wait_for_idle_kernel(seconds)

    def focused(self, selector: str) -> bool:
        """Whether what has the focus matches, or is inside something that does."""
        return self.page.evaluate("at => !!document.activeElement.closest(at)", selector)

    def set_theme(self, theme: str) -> None:
        """Switch to "JupyterLab Light" or "JupyterLab Dark" by the Settings menu."""
        self._menu("Settings", "Theme", theme)
        name = json.dumps(theme)
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeName === {name}")
        self.page.wait_for_selector(SPLASH, state="detached")

    def cell_errors(self) -> list[str]:
        """Return the text of every traceback in the notebook."""
        return [ANSI_COLOR.sub("", text) for text in self.page.evaluate(ERRORS)]

    def canvas_pixels(self, selector: str) -> str:
        """Return a canvas as a data URL, which changes when its picture does."""
        return self.page.locator(selector).first.evaluate("canvas => canvas.toDataURL()")

    def screenshot(self, name: str, *, of: str = ".jp-NotebookPanel") -> Path:
        """Save a picture of the first element that matches `of`."""
        self.shots.mkdir(parents=True, exist_ok=True)
        path = self.shots / f"{name}.png"
        target = self.page.locator(of).first
        target.scroll_into_view_if_needed()
        target.screenshot(path=path)
        return path

    def _menu(self, *labels: str) -> None:
        bar = self.page.locator("#jp-MainMenu .lm-MenuBar-item")
        bar.get_by_text(labels[0], exact=True).click()
        for label in labels[1:]:
            item = self.page.locator(".lm-Menu .lm-Menu-item:visible")
            item.get_by_text(label, exact=True).last.click()

    def wait_until_run(self, seconds: float) -> None:
        """Wait until every cell has run, or one failed: a kernel that answers clicks looks idle."""
        self.page.wait_for_function(DONE_OR_FAILED, timeout=seconds * 1000)
        self.wait_for_idle_kernel(seconds)

    def wait_for_idle_kernel(self, seconds: float) -> None:
        """Wait until nothing runs."""
        # A notebook without a kernel counts as idle too.
        self.page.wait_for_function(IDLE_KERNEL, timeout=seconds * 1000)


@contextlib.contextmanager
def open_chromium(executable: str) -> Iterator[Page]:
    """Yield a page of a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGS)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1600})
            # Long enough for a busy machine; what never comes still ends the test.
            page.set_default_timeout(300_000)
            yield page
        finally:
            browser.close()
