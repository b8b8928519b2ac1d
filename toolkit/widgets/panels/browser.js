// What happens in the browser without asking Python: keys, and the order of a table's rows.

const EXPLORER = ".pe-explorer";
const PICTURE = ".jupyter-matplotlib-canvas-div";
const OWN = new Set(["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "PageUp",
  "PageDown", "Enter", " "]);
const SUPPRESS = "data-lm-suppress-shortcuts";

// ------------------------------------------------------------------ keys

// JupyterLab takes arrow keys and others for the notebook, whatever has the focus. Those that a
// control of an explorer understands are its own; all others stay JupyterLab's.
function keepFromJupyterLab(event) {
  const at = event.target;
  if (!at.closest?.(EXPLORER)) return;
  const chord = event.ctrlKey || event.metaKey || event.altKey ||
    (event.shiftKey && event.key === "Enter");
  if (OWN.has(event.key) && !chord) {
    if (!at.hasAttribute(SUPPRESS)) at.setAttribute(SUPPRESS, "explorer");
  } else if (at.getAttribute(SUPPRESS) === "explorer") {
    at.removeAttribute(SUPPRESS);
  }
}

// ipympl swallows every key while a figure has the focus, Tab among them, so that the focus never
// leaves it. Only the arrows go there, and only where the figure answers them.
function keepFromFigure(event) {
  const picture = event.target.closest?.(`${EXPLORER} ${PICTURE}`);
  if (!picture) return;
  if (event.key.startsWith("Arrow") && picture.closest(".pe-arrows")) return;
  event.stopPropagation();
  if (event.type === "keydown" && event.key === "Escape") {
    (picture.parentElement.closest("[tabindex]") ?? document.body).focus();
    picture.blur();
  }
}

function listenOnce() {
  if (window.peListens) return;
  window.peListens = true;
  for (const type of ["keydown", "keyup"]) {
    window.addEventListener(type, keepFromJupyterLab, true);
    document.addEventListener(type, keepFromFigure, true);
  }
}

// ------------------------------------------------------------------ tables

const rowsOnPage = (api) => api.rows({page: "current"}).nodes().toArray();

// One row of the page can be reached by Tab, the others from there by arrow keys.
function makeReachable(api) {
  const rows = rowsOnPage(api);
  const first = rows.find((row) => row.classList.contains("selected")) ?? rows[0];
  for (const row of rows) row.tabIndex = row === first ? 0 : -1;
}

function turnPage(api, by, place) {
  const {page, pages} = api.page.info();
  if (page + by < 0 || page + by >= pages) return;
  api.page(page + by).draw("page");
  rowsOnPage(api).at(place)?.focus();
}

function onRowKey(api, event) {
  const rows = rowsOnPage(api), at = rows.indexOf(event.target);
  if (at < 0) return;
  const act = {
    ArrowDown: () => at + 1 < rows.length ? rows[at + 1].focus() : turnPage(api, 1, 0),
    ArrowUp: () => at > 0 ? rows[at - 1].focus() : turnPage(api, -1, -1),
    Home: () => rows[0].focus(),
    End: () => rows.at(-1).focus(),
    PageDown: () => turnPage(api, 1, 0),
    PageUp: () => turnPage(api, -1, 0),
    Enter: () => api.row(event.target).select(),
    " ": () => api.row(event.target).select(),
  }[event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  event.preventDefault();
  act();
}

// A row that is picked elsewhere may be on another page: turn to it.
function follow(api, index) {
  const shown = api.rows({order: "applied", search: "applied"}).indexes().toArray();
  const page = Math.floor(shown.indexOf(index) / api.page.len());
  if (page >= 0 && page !== api.page()) api.page(page).draw("page");
  makeReachable(api);
}

function tellOrder(api, model) {
  const rows = api.rows({order: "applied", search: "applied"}).indexes().toArray();
  if (rows.join() === model.get("rows").join()) return;
  model.set("rows", rows);
  model.save_changes();
}

// Called whenever DataTables has drawn; a table that gets new numbers is a new one.
function drawn(api, model) {
  const body = api.table().body();
  if (body && !body.peKnown) {
    body.peKnown = true;
    body.addEventListener("keydown", (event) => onRowKey(api, event));
    api.on("select", (event, dt, type, indexes) => follow(dt, indexes[0]));
  }
  makeReachable(api);
  tellOrder(api, model);
}

export default {
  render({model}) {
    listenOnce();
    const key = model.get("table");
    if (!key) return;
    const table = ((window.peTables ??= {})[key] ??= {});
    table.drawn = (api) => drawn(api, model);
    if (table.api) table.drawn(table.api);
  },
};
