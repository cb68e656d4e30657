// Elements and numbers. Data becomes text and nothing else: no function here, or elsewhere, makes markup of a string.

const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

// An element: attributes by name ("class", "aria-label", …), listeners as functions, children as elements or text.
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "circle", "path", "rect"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A name out of a file: set apart, so that letters that turn the direction of writing turn only their own.
function nameText(text, className = "name") {
  return el("bdi", { class: className, title: text }, text);
}

const NONE = "–";
const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

const formatCount = (count) => whole.format(count);

const isNumber = (value) => typeof value === "number" && !Number.isNaN(value);

// Kilometres to three figures or so: 0.21, 4.7, 53.1, 812, 9,410.
function formatKm(km, unit = true) {
  if (!isNumber(km)) return NONE;
  const digits = km < 1 ? 2 : km < 100 ? 1 : 0;
  const text = new Intl.NumberFormat("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(km);
  return unit ? `${text} km` : text;
}

// Scores are shares mostly; as many decimals for each, so that they stand below each other.
function formatScore(score) {
  if (!isNumber(score)) return NONE;
  const text = Math.abs(score) <= 1 ? score.toFixed(3) : Number(score.toPrecision(3)).toString();
  return text.replace("-", "−");
}

const formatPercent = (share) => (isNumber(share) ? `${share.toFixed(1)}%` : NONE);

// 43.5528° N, 7.0174° E
function formatPlace(lat, lon) {
  if (!isNumber(lat) || !isNumber(lon)) return NONE;
  const side = (value, positive, negative) => `${Math.abs(value).toFixed(4)}° ${value < 0 ? negative : positive}`;
  return `${side(lat, "N", "S")}, ${side(lon, "E", "W")}`;
}

const styleColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const isDark = () => document.documentElement.dataset.theme === "dark";

// The last of many calls counts, and once a frame is enough.
function onceAFrame(work) {
  let asked = 0;
  return () => {
    if (asked) return;
    asked = requestAnimationFrame(() => {
      asked = 0;
      work();
    });
  };
}
