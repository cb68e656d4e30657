// What is shown as it was given: head, warnings, summary, tables, figures.

function showHead() {
  byId("brand").textContent = page.version ? `geoinfer ${page.version}` : "geoinfer";
  fillOrHide("title", page.title);
  fillOrHide("subtitle", page.subtitle);
  fillOrHide("notice", page.notice);
  byId("warnings").hidden = !page.warnings?.length;
  byId("warnings-list").append(...(page.warnings ?? []).map((warning) => el("li", {}, warning)));
  const [some, all] = [page.shown ?? photos.count, page.of ?? photos.count];
  if (some < all) {
    const rest = "The summary, tables and figures are of all; map, list and the figures above them of these.";
    byId("sample-note").textContent = `${formatCount(some)} of ${formatCount(all)} photos are in this page. ${rest}`;
  }
  byId("about-made").textContent = isEvaluation
    ? "Points are where photos were taken, coloured by how far off the answer is. A line leads from there to the answer, on the great circle."
    : "Points are answers, coloured by the radius that goes with each; the circle around one is that radius.";
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
  // Tables of one kind share their note: it stands under the last of those that follow each other.
  const isLast = (i) => tables[i + 1]?.note !== tables[i].note;
  byId("tables-list").append(...tables.map((table, i) => tableElement({ ...table, note: isLast(i) ? table.note : "" }, i)));
}

function tableElement({ title, columns, rows, bold, note }, number) {
  const id = `table-${number}`;
  const cell = (text, row, column) => {
    const inside = bold?.[row]?.[column] ? el("strong", {}, text) : text;
    return column === 0 ? el("th", { scope: "row" }, inside) : el("td", { class: looksNumeric(text) ? "number" : "" }, inside);
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

const looksNumeric = (text) => /^[\s−–+-]*[\d.,]/.test(String(text ?? "")) || ["–", "-", ""].includes(String(text ?? "").trim());

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
