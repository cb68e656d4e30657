// The ground of the map: land and borders, drawn on one canvas. The outlines are turned into paths in the unit square of
// the map once, at three levels of detail, and after that a new view costs only their filling.

// Each level leaves out what is smaller than this, of the width of the world; the last leaves out nothing.
const LEVELS = [
  { upToZoom: 2.5, tolerance: 1 / 1400 },
  { upToZoom: 5, tolerance: 1 / 9000 },
  { upToZoom: Infinity, tolerance: 0 },
];

function readLand(topology) {
  if (!topology?.objects) return { rings: [], borders: [] };
  const { countries, land } = topology.objects;
  const shape = topojson.feature(topology, land ?? countries);
  const polygons = (shape.features ?? [shape]).flatMap(({ geometry }) =>
    geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates,
  );
  const rings = polygons.flat().map((ring) => {
    const places = unwrapped(ring.map(([lon, lat]) => [lat, lon]));
    return toMap(closedRing(places, places[0][0] < 0 ? -90 : 90));
  });
  const lines = countries ? topojson.mesh(topology, countries, (a, b) => a !== b).coordinates : [];
  return { rings, borders: lines.map((line) => toMap(unwrapped(line.map(([lon, lat]) => [lat, lon])))) };
}

// [lat, lon] points as {x, y} columns of the unit square, and the box around them.
function toMap(points) {
  const line = {
    x: Float64Array.from(points, ([, lon]) => mercatorX(lon)),
    y: Float64Array.from(points, ([lat]) => mercatorY(lat)),
  };
  line.west = Math.min(...line.x);
  line.east = Math.max(...line.x);
  line.north = Math.min(...line.y);
  line.south = Math.max(...line.y);
  return line;
}

// A Path2D of one outline without the points that are nearer than the tolerance to the last one kept; null for what is
// too small to be seen.
function pathOf({ x, y, west, east, north, south }, tolerance, closed) {
  if (closed && east - west < tolerance && south - north < tolerance) return null;
  const path = new Path2D();
  path.moveTo(x[0], y[0]);
  let last = 0;
  for (let i = 1; i < x.length; i++) {
    if (i < x.length - 1 && Math.abs(x[i] - x[last]) < tolerance && Math.abs(y[i] - y[last]) < tolerance) continue;
    path.lineTo(x[i], y[i]);
    last = i;
  }
  if (closed) path.closePath();
  return path;
}

// How near the edge of what was drawn the view may come while it is dragged, in pixels, before it is drawn anew.
const AHEAD_PX = 32;

// Leaflet's base for what draws the whole view at once: it moves and scales the canvas while the map is moved. For one
// movement Leaflet says several times that the view is another; it is drawn once, with the next frame.
const SheetLayer = L.Renderer.extend({
  options: { padding: 0.3 },

  initialize(options) {
    L.Renderer.prototype.initialize.call(this, options);
    this._layers = {};
    this._drawSoon = onceAFrame(() => this._drawView());
  },

  _initContainer() {
    this._container = el("canvas", { "aria-hidden": "true" });
    this._context = this._container.getContext("2d");
  },

  _destroyContainer() {
    this._container.remove();
    this._view = null;
  },

  getEvents() {
    const events = L.Renderer.prototype.getEvents.call(this);
    events.move = () => {
      if (this._view && !this._covers()) this._update();
    };
    return events;
  },

  _update() {
    this._drawSoon();
  },

  // What was drawn goes to its place in the new view, until that is drawn.
  _reset() {
    this._update();
    if (this._view) this._onZoom();
  },

  // Whether the view is within what was drawn, with some room to go on.
  _covers() {
    const { min, max } = this._map.getPixelBounds();
    const scale = 256 * 2 ** this._map.getZoom();
    const { west, north, east, south } = this._view;
    return (
      (min.x - AHEAD_PX) / scale >= west &&
      (min.y - AHEAD_PX) / scale >= north &&
      (max.x + AHEAD_PX) / scale <= east &&
      (max.y + AHEAD_PX) / scale <= south
    );
  },

  _drawView() {
    // While a zoom is shown as one movement, the canvas is part of that; its end is one more change of the view.
    if (!this._map || (this._map._animatingZoom && this._view)) return;
    L.Renderer.prototype._update.call(this);
    const size = this._bounds.getSize();
    const ratio = window.devicePixelRatio || 1;
    L.DomUtil.setPosition(this._container, this._bounds.min);
    const [width, height] = [Math.round(size.x * ratio), Math.round(size.y * ratio)];
    if (this._container.width !== width || this._container.height !== height) {
      Object.assign(this._container, { width, height });
      Object.assign(this._container.style, { width: `${size.x}px`, height: `${size.y}px` });
    }
    const scale = 256 * 2 ** this._zoom;
    const corner = this._map.getPixelOrigin().add(this._bounds.min).divideBy(scale);
    this._view = { scale, ratio, west: corner.x, north: corner.y, east: corner.x + size.x / scale, south: corner.y + size.y / scale };
    this.draw();
  },

  // Draws at once what the canvas shows: scale is the width of the world in pixels of the screen, (west, north) the
  // canvas's own corner in the unit square of the map.
  draw() {
    if (!this._view) return;
    this._context.setTransform(1, 0, 0, 1, 0, 0);
    this._context.clearRect(0, 0, this._container.width, this._container.height);
    this.paint(this._context, this._view);
  },
});

const LandLayer = SheetLayer.extend({
  initialize(topology, options) {
    SheetLayer.prototype.initialize.call(this, options);
    this._lines = readLand(topology);
    this._levels = new Map();
  },

  _level(zoom) {
    const level = LEVELS.find(({ upToZoom }) => zoom <= upToZoom);
    if (!this._levels.has(level)) {
      const paths = (lines, closed) =>
        lines.map((line) => ({ line, path: pathOf(line, level.tolerance, closed) })).filter(({ path }) => path);
      this._levels.set(level, { rings: paths(this._lines.rings, true), borders: paths(this._lines.borders, false) });
    }
    return this._levels.get(level);
  },

  paint(context, view) {
    const { rings, borders } = this._level(this._zoom);
    const pixel = 1 / view.scale;
    const unit = view.scale * view.ratio;
    this._paintGrid(context, view);
    context.lineJoin = "round";
    context.fillStyle = styleColour("--land");
    for (let turn = Math.floor(view.west) - 1; turn <= Math.floor(view.east) + 1; turn++) {
      const isSeen = ({ line }) =>
        line.west + turn < view.east && line.east + turn > view.west && line.north < view.south && line.south > view.north;
      context.setTransform(unit, 0, 0, unit, (turn - view.west) * unit, -view.north * unit);
      // Filled as one, so that a ring within a ring, a lake, is left out.
      const land = new Path2D();
      for (const { path } of rings.filter(isSeen)) land.addPath(path);
      context.fill(land, "evenodd");
      context.strokeStyle = styleColour("--coast");
      context.lineWidth = 0.8 * pixel;
      context.stroke(land);
      context.strokeStyle = styleColour("--border");
      context.lineWidth = 0.7 * pixel;
      for (const { path } of borders.filter(isSeen)) context.stroke(path);
    }
  },

  // Every 30 degrees, faint.
  _paintGrid(context, view) {
    const unit = view.scale * view.ratio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.strokeStyle = styleColour("--grid");
    context.lineWidth = view.ratio;
    context.beginPath();
    for (let i = Math.ceil(view.west * 12); i <= view.east * 12; i++) {
      const x = Math.round((i / 12 - view.west) * unit) + 0.5;
      context.moveTo(x, 0);
      context.lineTo(x, context.canvas.height);
    }
    for (let lat = -60; lat <= 60; lat += 30) {
      const y = Math.round((mercatorY(lat) - view.north) * unit) + 0.5;
      context.moveTo(0, y);
      context.lineTo(context.canvas.width, y);
    }
    context.stroke();
  },
});
