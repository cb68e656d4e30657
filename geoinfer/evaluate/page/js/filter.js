// Which photos are shown: the controls above the map, what they choose, and who is told when that changes.

const chosen = { set: 0, status: "", low: 0, high: 100, search: "", bands: bands.map(() => true) };
const shown = { photos: [], mask: new Uint8Array(photos.count), perBand: bands.map(() => 0), listeners: [] };

const scores = scoreRange();
const STATUS_NAMES = { ok: "answered", error: "failed", skipped: "skipped", missing: "no prediction" };

function scoreRange() {
  let [low, high] = [Infinity, -Infinity];
  for (const score of photos.score) {
    if (score < low) low = score;
    if (score > high) high = score;
  }
  return { low, high, known: low < high };
}

function scoreAt(step) {
  if (step <= 0) return scores.low;
  return step >= 100 ? scores.high : scores.low + ((scores.high - scores.low) * step) / 100;
}

// Everything but the bands decides what a band counts, so that a band which is off still says how many it would bring.
function applyFilters() {
  const members = photos.members[chosen.set];
  const byScore = scores.known && (chosen.low > 0 || chosen.high < 100);
  const [low, high] = [scoreAt(chosen.low), scoreAt(chosen.high)];
  const search = chosen.search.trim().toLowerCase();
  shown.photos = [];
  shown.mask.fill(0);
  shown.perBand.fill(0);
  for (let i = 0; i < photos.count; i++) {
    if (members && !members[i]) continue;
    if (chosen.status && photos.status[i] !== chosen.status) continue;
    // A photo without a score is in no part of the range.
    if (byScore && !(photos.score[i] >= low && photos.score[i] <= high)) continue;
    if (search && !photos.text[i].includes(search)) continue;
    shown.perBand[photos.band[i]]++;
    if (!chosen.bands[photos.band[i]]) continue;
    shown.photos.push(i);
    shown.mask[i] = 1;
  }
  showBandCounts();
  showFigures();
  for (const listener of shown.listeners) listener();
}

function resetFilters() {
  Object.assign(chosen, { set: 0, status: "", low: 0, high: 100, search: "", bands: bands.map(() => true) });
  byId("set").value = "0";
  byId("status").value = "";
  byId("search").value = "";
  byId("score-low").value = "0";
  byId("score-high").value = "100";
  showScores();
  chooseTablesOf(page.sets?.[0]);
  applyFilters();
}

function setUpFilters() {
  setUpSets();
  setUpStatuses();
  setUpScores();
  setUpSearch();
  setUpBands();
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    resetFilters();
  });
}

function setUpSets() {
  const names = page.sets ?? [];
  byId("set-field").hidden = names.length < 2;
  names.forEach((name, i) => {
    const size = photos.members[i].reduce((sum, one) => sum + one, 0);
    byId("set").append(el("option", { value: i }, `${name} (${formatCount(size)})`));
  });
  byId("set").addEventListener("change", (event) => {
    chosen.set = Number(event.target.value);
    chooseTablesOf(names[chosen.set]);
    applyFilters();
  });
}

function setUpStatuses() {
  const counts = new Map();
  for (const status of photos.status) counts.set(status, (counts.get(status) ?? 0) + 1);
  byId("status-field").hidden = counts.size < 2;
  byId("status").append(el("option", { value: "" }, `all (${formatCount(photos.count)})`));
  for (const [status, count] of counts) {
    const name = Object.hasOwn(STATUS_NAMES, status) ? STATUS_NAMES[status] : status;
    byId("status").append(el("option", { value: status }, `${name} (${formatCount(count)})`));
  }
  byId("status").addEventListener("change", (event) => {
    chosen.status = event.target.value;
    applyFilters();
  });
}

function setUpScores() {
  byId("score-field").hidden = !scores.known;
  if (!scores.known) return;
  drawHistogram();
  const apply = onceAFrame(applyFilters);
  // The two ends may meet and do not pass each other.
  byId("score-low").addEventListener("input", (event) => {
    chosen.low = Math.min(Number(event.target.value), chosen.high);
    event.target.value = chosen.low;
    showScores();
    apply();
  });
  byId("score-high").addEventListener("input", (event) => {
    chosen.high = Math.max(Number(event.target.value), chosen.low);
    event.target.value = chosen.high;
    showScores();
    apply();
  });
  showScores();
}

function showScores() {
  if (!scores.known) return;
  const [low, high] = [formatScore(scoreAt(chosen.low)), formatScore(scoreAt(chosen.high))];
  byId("score-value").textContent = `${low} to ${high}`;
  byId("score-low").setAttribute("aria-valuetext", low);
  byId("score-high").setAttribute("aria-valuetext", high);
  byId("score-track").style.left = `${chosen.low}%`;
  byId("score-track").style.right = `${100 - chosen.high}%`;
  // Where both are at the right end, the lower one must be within reach.
  byId("score-low").style.zIndex = chosen.low > 50 ? "3" : "";
}

function drawHistogram() {
  const BARS = 40;
  const bars = new Array(BARS).fill(0);
  for (const score of photos.score) {
    if (Number.isNaN(score)) continue;
    const part = (score - scores.low) / (scores.high - scores.low);
    bars[Math.min(BARS - 1, Math.floor(part * BARS))]++;
  }
  const highest = Math.max(...bars);
  bars.forEach((count, i) => {
    const height = (24 * count) / highest;
    byId("score-histogram").append(el("rect", { x: i + 0.1, y: 24 - height, width: 0.8, height }));
  });
}

function setUpSearch() {
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      chosen.search = event.target.value;
      applyFilters();
    }, 120);
  });
}

function setUpBands() {
  byId("bands-label").textContent = measureName;
  bands.forEach((band, i) => {
    // Few pages have photos without an answer; every legend shows all the colours.
    if (band.cross && !photos.band.includes(i)) return;
    const button = el(
      "button",
      { type: "button", class: "band", "data-band": i, "aria-pressed": "true", title: "Show or hide these" },
      bandMark(i),
      el("span", { class: "band-label" }, band.label),
      el("span", { class: "band-count" }),
    );
    button.addEventListener("click", () => {
      chosen.bands[i] = !chosen.bands[i];
      applyFilters();
    });
    byId("bands").append(button);
  });
}

// What a photo of a band looks like on the map.
function bandMark(band) {
  const shape = bands[band].cross
    ? el("path", { d: "M3 3L9 9M9 3L3 9", class: "mark-cross", "data-band": band })
    : el("circle", { cx: 6, cy: 6, r: 4.5, class: "mark-dot", "data-band": band });
  colourMark(shape);
  return el("svg", { class: "mark", viewBox: "0 0 12 12", "aria-hidden": "true" }, shape);
}

function colourMark(shape) {
  shape.style.setProperty("--band", bandColour(Number(shape.dataset.band)));
}

document.addEventListener("themechange", () => document.querySelectorAll(".mark [data-band]").forEach(colourMark));

function showBandCounts() {
  for (const button of byId("bands").querySelectorAll(".band")) {
    const band = Number(button.dataset.band);
    button.querySelector(".band-count").textContent = formatCount(shown.perBand[band]);
    button.setAttribute("aria-pressed", String(chosen.bands[band]));
  }
}

function showFigures() {
  const figures = figuresOf(shown.photos);
  const [all, count] = [formatCount(photos.count), formatCount(shown.photos.length)];
  byId("live-title").textContent = `${count} of ${all} ${photos.count === 1 ? "photo" : "photos"} shown`;
  const word = isEvaluation ? "error" : "radius";
  const entries = [
    [isEvaluation ? "answered" : "with a radius", formatCount(figures.count)],
    [`median ${word}`, formatKm(figures.median)],
    [`mean ${word}`, formatKm(figures.mean)],
    ...figures.within.map(({ radius, percent }) => [
      `${isEvaluation ? "" : "radius "}${withinIsInclusive ? "≤" : "<"} ${formatCount(radius)} km`,
      formatPercent(percent),
    ]),
  ];
  byId("live-figures").replaceChildren(
    ...entries.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))),
  );
}
