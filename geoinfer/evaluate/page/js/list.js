// The list of the shown photos, the worst first: sorted by any column, a page of rows at a time.

const ROWS = 50;
const byText = new Intl.Collator("en", { numeric: true });

const COLUMNS = [
  { key: "id", title: "Photo", numeric: false },
  { key: "error", title: "Error", numeric: true, only: "evaluation", cell: (i) => formatKm(photos.error[i]) },
  { key: "radius", title: "Radius", numeric: true, cell: (i) => formatKm(photos.radius[i]) },
  { key: "score", title: "Score", numeric: true, cell: (i) => formatScore(photos.score[i]) },
].filter(isWorthShowing);

const list = { order: [], sort: isEvaluation ? "error" : "radius", down: true, page: 0, current: 0 };

// A column that is empty in every photo is left out.
function isWorthShowing({ key, only }) {
  if (key === "id") return true;
  if (only && !isEvaluation) return false;
  return photos[key].some((value) => !Number.isNaN(value));
}

// Under the name: where it was taken, or why there is no answer.
function secondLine(photo) {
  const failed = photos.status[photo] && photos.status[photo] !== "ok";
  const words = failed ? [statusName(photo), photos.reason[photo]].filter(Boolean).join(": ") : photos.place[photo];
  return words ? el("bdi", { title: words, class: failed ? "row-reason" : "row-place" }, words) : null;
}

function setUpList() {
  for (const { key, title, numeric } of COLUMNS) {
    const button = el("button", { type: "button", class: "sort", click: () => sortBy(key) }, title);
    byId("list-head").append(el("th", { scope: "col", "data-key": key, class: numeric ? "number" : "" }, button));
  }
  if (!COLUMNS.some(({ key }) => key === list.sort)) Object.assign(list, { sort: "id", down: false });
  byId("list-caption").textContent = isEvaluation
    ? "The photos shown; choosing one opens it on the map"
    : "The predictions shown; choosing one opens it on the map";
  byId("list-body").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) openRow(Number(row.dataset.place));
  });
  byId("list-body").addEventListener("keydown", moveInList);
  const turn = { first: () => 0, previous: () => list.page - 1, next: () => list.page + 1, last: () => Infinity };
  for (const [name, page] of Object.entries(turn)) {
    byId(`page-${name}`).addEventListener("click", () => showListPage(page()));
  }
  byId("list-reset").addEventListener("click", resetFilters);
  shown.listeners.push(sortList);
}

// Again by the same column turns the order; numbers begin with the largest.
function sortBy(key) {
  if (list.sort === key) list.down = !list.down;
  else Object.assign(list, { sort: key, down: COLUMNS.find((column) => column.key === key).numeric });
  sortList();
}

const ranked = new Map();

// All photos in the order of a column, found once. What has no value comes last whichever way the list is sorted.
function rankedBy(key, down) {
  const name = `${key} ${down}`;
  if (ranked.has(name)) return ranked.get(name);
  const { numeric } = COLUMNS.find((column) => column.key === key);
  const values = photos[key];
  const sign = down ? -1 : 1;
  const missing = (photo) => (numeric ? Number.isNaN(values[photo]) : !values[photo]);
  const order = [...values.keys()].sort((a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b) || a - b;
    return sign * (numeric ? values[a] - values[b] : byText.compare(values[a], values[b])) || a - b;
  });
  ranked.set(name, order);
  return order;
}

function sortList() {
  list.order = rankedBy(list.sort, list.down).filter((photo) => shown.mask[photo]);
  for (const head of byId("list-head").children) {
    if (head.dataset.key !== list.sort) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", list.down ? "descending" : "ascending");
  }
  showListPage(0);
}

function showListPage(wanted) {
  const pages = Math.max(1, Math.ceil(list.order.length / ROWS));
  list.page = Math.max(0, Math.min(pages - 1, wanted));
  list.current = list.page * ROWS;
  const rows = list.order.slice(list.current, list.current + ROWS);
  byId("list-body").replaceChildren(...rows.map((photo, i) => listRow(photo, list.current + i)));
  byId("list-scroll").scrollTop = 0;
  byId("list-empty").hidden = list.order.length > 0;
  byId("pager").hidden = list.order.length <= ROWS;
  const last = list.current + rows.length;
  byId("page-text").textContent = `${formatCount(list.current + 1)}–${formatCount(last)} of ${formatCount(list.order.length)}`;
  byId("page-first").disabled = byId("page-previous").disabled = list.page === 0;
  byId("page-next").disabled = byId("page-last").disabled = list.page === pages - 1;
  markRow(mapState.pinned ? mapState.photo : -1);
}

function listRow(photo, place) {
  const cells = COLUMNS.map(({ key, numeric, cell }) => {
    if (key === "id") return el("th", { scope: "row" }, photoCell(photo, place));
    return el("td", { class: numeric ? "number" : "" }, cell(photo));
  });
  return el("tr", { "data-photo": photo, "data-place": place }, ...cells);
}

// The button is what the keyboard reaches: one of the page's, and the arrows go on from it.
function photoCell(photo, place) {
  const picture = pictureOf(photo)
    ? el("img", { src: pictureOf(photo), alt: "", class: "row-picture", loading: "lazy" })
    : el("span", { class: "row-picture row-picture-none", "aria-hidden": "true" });
  return el(
    "button",
    { type: "button", class: "row-open", tabindex: place === list.current ? "0" : "-1" },
    bandMark(photos.band[photo]),
    page.thumbs?.length ? picture : null,
    el("span", { class: "row-words" }, nameText(photos.id[photo]), secondLine(photo)),
  );
}

function openRow(place) {
  goToRow(place);
  openFromList(list.order[place]);
}

// Puts the keyboard's place on a row, on whichever page it is.
function goToRow(place) {
  const page = Math.floor(place / ROWS);
  if (page !== list.page) showListPage(page);
  const buttons = byId("list-body").querySelectorAll(".row-open");
  list.current = place;
  buttons.forEach((button, i) => button.setAttribute("tabindex", i === place - page * ROWS ? "0" : "-1"));
  return buttons[place - page * ROWS];
}

function moveInList(event) {
  const row = event.target.closest("tr");
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: ROWS, PageUp: -ROWS, Home: -Infinity, End: Infinity };
  if (!row || !Object.hasOwn(steps, event.key)) return;
  event.preventDefault();
  const wanted = Number(row.dataset.place) + steps[event.key];
  goToRow(Math.max(0, Math.min(list.order.length - 1, wanted))).focus();
}

// From the map: the photo after, or before, the one that is open.
function stepInList(by) {
  if (!list.order.length) return;
  const at = list.order.indexOf(mapState.photo);
  const place = at < 0 ? (by > 0 ? 0 : list.order.length - 1) : (at + by + list.order.length) % list.order.length;
  openRow(place);
}

// The row of the photo that is open on the map, if it is on this page.
function markRow(photo) {
  for (const row of byId("list-body").children) {
    const open = Number(row.dataset.photo) === photo;
    row.classList.toggle("row-chosen", open);
    if (open) {
      row.setAttribute("aria-current", "true");
      const box = byId("list-scroll");
      const [top, bottom] = [row.offsetTop, row.offsetTop + row.offsetHeight];
      // Only the list's own box scrolls, never the page.
      const head = byId("list-head").offsetHeight;
      if (top - head < box.scrollTop) box.scrollTop = top - head;
      else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
    } else row.removeAttribute("aria-current");
  }
}
