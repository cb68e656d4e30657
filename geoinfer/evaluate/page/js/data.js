// What the page was given, as columns that are quick to go through, and the figures of any part of it.

const page = JSON.parse(byId("data").textContent);
const isEvaluation = page.kind !== "predictions";

// What is told on the map by colour: how far off an answer is or, where no truth is known, how far off it may be.
const measureKey = isEvaluation ? "error_km" : "radius_km";
const measureName = isEvaluation ? "Error" : "Radius";

const RADII_KM = page.radii_km ?? [1, 25, 200, 750, 2500];
// Whether an error of exactly R km is within R km: conventions differ. A radius is, as its colours have it.
const withinIsInclusive = page.convention?.inclusive ?? !isEvaluation;

const photos = readColumns(page.points);
const bands = readBands(page.bands ?? []);
photos.band = Uint8Array.from(photos.measure, bandOf);
photos.members = readSets(page.sets ?? [], page.points.sets ?? []);

function floats(column, count) {
  const values = new Float64Array(count).fill(NaN);
  (column ?? []).forEach((value, i) => {
    if (typeof value === "number") values[i] = value;
  });
  return values;
}

function readColumns(points) {
  const count = points.id.length;
  const texts = (column) => Array.from({ length: count }, (_, i) => String(column?.[i] ?? ""));
  const columns = {
    count,
    id: texts(points.id),
    path: texts(points.path),
    status: texts(points.status),
    place: texts(points.place),
    reason: texts(points.reason),
    lat: floats(points.lat, count),
    lon: floats(points.lon, count),
    trueLat: floats(points.true_lat, count),
    trueLon: floats(points.true_lon, count),
    error: floats(points.error_km, count),
    score: floats(points.score, count),
    radius: floats(points.radius_km, count),
    measure: floats(points[measureKey], count),
    thumb: points.thumb ?? [],
    candidates: points.candidates ?? [],
  };
  // Where each stands on the map; NaN: nowhere.
  columns.mapLat = isEvaluation ? columns.trueLat : columns.lat;
  columns.mapLon = isEvaluation ? columns.trueLon : columns.lon;
  columns.text = columns.id.map((id, i) => `${id}\n${columns.path[i]}`.toLowerCase());
  return columns;
}

// The bands of errors, and after them one of what has no answer (or, among predictions, no radius).
function readBands(given) {
  const all = given.map((band) => ({ ...band, upto: band.upto_km ?? Infinity, cross: false }));
  const label = isEvaluation ? "No answer" : "Radius not known";
  all.push({ label, upto: NaN, colour_light: "#6f6f6f", colour_dark: "#a9b1b8", cross: true });
  return all;
}

function bandOf(value) {
  if (Number.isNaN(value)) return bands.length - 1;
  const found = bands.findIndex((band) => value <= band.upto);
  return found < 0 ? bands.length - 1 : found;
}

// For each set, which photos are in it.
function readSets(names, numbers) {
  const members = names.map(() => new Uint8Array(photos.count));
  numbers.forEach((own, i) => own.forEach((set) => members[set] && (members[set][i] = 1)));
  return members;
}

const bandColour = (band) => bands[band][isDark() ? "colour_dark" : "colour_light"];

const pictureOf = (photo) => page.thumbs?.[photos.thumb[photo] ?? -1] ?? null;

const hasPlace = (photo) => !Number.isNaN(photos.mapLat[photo]) && !Number.isNaN(photos.mapLon[photo]);

const hasAnswer = (photo) => !Number.isNaN(photos.lat[photo]) && !Number.isNaN(photos.lon[photo]);

// The middle one of a sorted array, or the mean of the two middle ones.
function median(sorted) {
  const half = sorted.length / 2;
  if (!sorted.length) return NaN;
  return sorted.length % 2 ? sorted[Math.floor(half)] : (sorted[half - 1] + sorted[half]) / 2;
}

// Figures of the given photos. Those without an answer are counted and are in none of the figures, as in the tables.
function figuresOf(chosen) {
  const values = Float64Array.from(chosen, (photo) => photos.measure[photo]).filter((value) => !Number.isNaN(value));
  values.sort();
  const count = values.length;
  let sum = 0;
  for (const value of values) sum += value;
  const within = RADII_KM.map((radius) => {
    let inside = 0;
    while (inside < count && (withinIsInclusive ? values[inside] <= radius : values[inside] < radius)) inside++;
    return { radius, percent: count ? (100 * inside) / count : NaN };
  });
  return { count, median: median(values), mean: count ? sum / count : NaN, within };
}
