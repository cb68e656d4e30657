// What is shown as it was given: head, warnings, summary, tables, figures.

function showHead() {
  byId("brand").textContent = page.version ? `geoinfer ${page.version}` : "geoinfer";
  fillOrHide("title", page.title);
  fillOrHide("subtitle", page.subtitle);
  byId("notice").replaceChildren(...withCode(page.notice ?? ""));
  byId("notice").hidden = !page.notice;
  byId("warnings").hidden = !page.warnings?.length;
  byId("warnings-list").append(...(page.warnings ?? []).map((warning) => el("li", {}, ...withCode(warning))));
  const [some, all] = [page.shown ?? photos.count, page.of ?? photos.count];
  if (some < all) {
    const rest = "The summary, tables and figures are of all; map, list and the figures above them of these.";
    byId("sample-note").textContent = `${formatCount(some)} of ${formatCount(all)} photos are in this page. ${rest}`;
  }
  byId("about-made").textContent = isEvaluation
    ? "Points are where photos were taken, coloured by how far off the answer is. A line leads from there to the answer, on the great circle."
    : "Points are answers, coloured by the radius that goes with each; the circle around one is that radius.";
}

// Sentences in which what is typed or read by a program stands between backticks; one without its other is itself.
function withCode(text) {
  return text.split(/`([^`]+)`/).map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

function fillOrHide(id, text) {
  byId(id).textContent = text ?? "";
  byId(id).hidden = !text;
}

function showSummary() {
  const cards = page.summary ?? [];
  byId("summary").hidden = !cards.length;
  byId("summary-cards").append(
    ...cards.map(({ label, value, detail }) =>
      el(
        "div",
        { class: "summary-card" },
        el("dt", {}, label),
        el("dd", { class: "summary-value" }, value),
        detail ? el("dd", { class: "summary-detail" }, detail) : null,
      ),
    ),
  );
}

function showTables() {
  const tables = page.tables ?? [];
  byId("tables").hidden = !tables.length;
  byId("tables-list").append(...tables.map(tableElement));
  byId("tables-notes").append(...(page.table_notes ?? []).map((note) => el("li", {}, note)));
  const names = [...new Set(tables.map(({ set }) => set).filter(Boolean))];
  byId("tables-set-field").hidden = names.length < 2;
  if (names.length < 2) return;
  // Of many sets the tables of one are shown, at first those of the first.
  byId("tables-set").append(...names.map((name) => el("option", { value: name }, name)), el("option", { value: "" }, "all sets"));
  byId("tables-set").addEventListener("change", showTablesOfSet);
  showTablesOfSet();
}

function showTablesOfSet() {
  const name = byId("tables-set").value;
  page.tables.forEach(({ set }, i) => {
    byId("tables-list").children[i].hidden = Boolean(name && set && set !== name);
  });
}

// The tables follow the set that is chosen for the map and the list, where there are tables of it.
function chooseTablesOf(name) {
  const select = byId("tables-set");
  if (![...select.options].some(({ value }) => value === name)) return;
  select.value = name;
  showTablesOfSet();
}

function tableElement({ title, columns, rows, bold, note }, number) {
  const id = `table-${number}`;
  const cell = (text, row, column) => {
    const inside = bold?.[row]?.[column] ? el("strong", {}, text) : text;
    return column === 0 ? el("th", { scope: "row" }, inside) : el("td", { class: numeric[column] ? "number" : "" }, inside);
  };
  const numeric = columns.map((_, column) => column > 0 && rows.some((row) => looksNumeric(row[column])));
  return el(
    "figure",
    { class: "table-block" },
    el("figcaption", { id }, title),
    // A box that scrolls must be within the keyboard's reach.
    el(
      "div",
      { class: "table-scroll", tabindex: "0", role: "region", "aria-labelledby": id },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el("tr", {}, ...columns.map((name, i) => el("th", { scope: "col", class: numeric[i] ? "number" : "" }, name))),
        ),
        el("tbody", {}, ...rows.map((row, r) => el("tr", {}, ...row.map((text, c) => cell(text, r, c))))),
      ),
    ),
    note ? el("p", { class: "table-note" }, note) : null,
  );
}

const looksNumeric = (text) => /^[\s−–+-]*[\d.,]/.test(String(text ?? "")) || ["–", "-", "N/A", ""].includes(String(text ?? "").trim());

function showFigureGallery() {
  const figures = page.figures ?? [];
  byId("figures").hidden = !figures.length;
  byId("figures-list").append(
    ...figures.map(({ title, png }) =>
      el(
        "figure",
        {},
        el(
          "button",
          { type: "button", class: "enlarge", "aria-label": `Enlarge: ${title}`, click: () => enlarge(title, png) },
          el("img", { src: png, alt: title, loading: "lazy" }),
        ),
        el("figcaption", {}, title),
      ),
    ),
  );
  byId("enlarged").addEventListener("click", (event) => {
    if (event.target === byId("enlarged")) byId("enlarged").close();
  });
}

function enlarge(title, png) {
  byId("enlarged-title").textContent = title;
  byId("enlarged-image").src = png;
  byId("enlarged-image").alt = title;
  byId("enlarged").showModal();
}

function showContents() {
  const parts = [["summary", "Summary"], ["explore", "Map and list"], ["figures", "Figures"], ["tables", "Tables"], ["about", "About"]];
  byId("contents").append(
    ...parts.filter(([id]) => !byId(id).hidden).map(([id, name]) => el("a", { href: `#${id}` }, name)),
  );
}
