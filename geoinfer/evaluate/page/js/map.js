// The map: ground, points, and whichever photo is looked at, under the pointer or kept open.

const SLACK_PX = { mouse: 4, touch: 14 };
const FLIGHT_ZOOM = 7;
// Pixels between a place and the map's edge, for its mark.
const EDGE_ROOM = 10;
const NO_MOTION = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

const mapState = { map: null, points: null, land: null, overlay: null, card: null, photo: -1, pinned: false, turn: 0, stack: [] };

function setUpMap() {
  const box = byId("map");
  const map = L.map(box, {
    attributionControl: false,
    zoomSnap: 0.25,
    maxZoom: 12,
    maxBounds: [[-EDGE_LATITUDE, -36000], [EDGE_LATITUDE, 36000]],
    maxBoundsViscosity: 1,
    zoomAnimation: !NO_MOTION,
    inertia: !NO_MOTION,
    scrollWheelZoom: false,
    bounceAtZoomLimits: false,
  });
  for (const [name, level] of [["ground", 200], ["photos", 400], ["chosen", 450]]) {
    map.createPane(name).style.zIndex = level;
  }
  map.getPane("photos").style.pointerEvents = "none";
  if (NO_MOTION) map.panBy = (offset, options) => L.Map.prototype.panBy.call(map, offset, { ...options, animate: false });
  mapState.map = map;
  fitWorld();
  showAll();
  mapState.land = new LandLayer(page.land, { pane: "ground" }).addTo(map);
  mapState.points = new PointsLayer({ pane: "photos" }).addTo(map);
  mapState.overlay = L.layerGroup().addTo(map);
  setUpCard(box);
  setUpPointer(map, box);
  setUpKeys(map, box);
  setUpWheel(map, box);
  shown.listeners.push(() => {
    mapState.points.show(shown.mask);
    if (mapState.photo >= 0 && !shown.mask[mapState.photo]) closePhoto();
  });
  document.addEventListener("themechange", () => {
    mapState.land.draw();
    mapState.points.refreshColours();
  });
  new ResizeObserver(() => {
    map.invalidateSize({ animate: false });
    fitWorld();
  }).observe(box);
  showMapNote();
}

// No farther out than the world's height fills the map's.
function fitWorld() {
  const size = mapState.map.getSize();
  mapState.map.setMinZoom(Math.ceil(4 * Math.log2(Math.max(size.y, 128) / 256)) / 4);
}

function showAll() {
  const bounds = boundsOf(Array.from({ length: photos.count }, (_, i) => i).filter(hasPlace));
  if (bounds) mapState.map.fitBounds(bounds, { animate: false, maxZoom: 5, padding: [24, 24] });
  else {
    const size = mapState.map.getSize();
    const zoom = Math.floor(4 * Math.log2(Math.max(size.x, 256) / 256)) / 4;
    mapState.map.setView([25, 8], Math.max(mapState.map.getMinZoom(), zoom), { animate: false });
  }
}

// The smallest box around photos, which may cross the antimeridian; null where it would be most of the world.
function boundsOf(placed) {
  if (!placed.length) return null;
  const lons = Float64Array.from(placed, (photo) => photos.mapLon[photo]).sort();
  let [gap, west] = [lons[0] + 360 - lons[lons.length - 1], 0];
  for (let i = 1; i < lons.length; i++) if (lons[i] - lons[i - 1] > gap) [gap, west] = [lons[i] - lons[i - 1], i];
  if (gap < 160) return null;
  let [south, north] = [90, -90];
  for (const photo of placed) {
    south = Math.min(south, photos.mapLat[photo]);
    north = Math.max(north, photos.mapLat[photo]);
  }
  return [[south, lons[west]], [north, lons[west] + 360 - gap]];
}

function showMapNote() {
  const placed = Array.from({ length: photos.count }, (_, i) => i).filter(hasPlace);
  const beyond = placed.filter((photo) => Math.abs(photos.mapLat[photo]) > EDGE_LATITUDE).length;
  const without = photos.count - placed.length;
  const notes = [];
  const are = (count) => (count === 1 ? "1 photo is" : `${formatCount(count)} photos are`);
  if (beyond) notes.push(`${are(beyond)} beyond 85° of latitude, where this map ends, and drawn at its edge.`);
  if (without) notes.push(`${are(without)} in the list only, without a place on the map.`);
  byId("map-note").textContent = notes.join(" ");
  byId("map-note").hidden = !notes.length;
}

function setUpCard(box) {
  const card = el("section", { class: "card", "aria-label": "Photo", hidden: true });
  // Before the map's own buttons, so that Tab goes from the map into the card.
  box.prepend(card);
  L.DomEvent.disableClickPropagation(card);
  L.DomEvent.disableScrollPropagation(card);
  // Leaflet looks for the card around what was clicked, which may be gone from it by then.
  card.addEventListener("click", (event) => event.stopPropagation());
  mapState.card = card;
  mapState.map.on("move zoomend resize", moveCard);
}

// What lies under the pointer, and which copy of the world it is on.
function photosAt(latlng, slack) {
  const [x, y] = [mercatorX(latlng.lng), mercatorY(latlng.lat)];
  const found = mapState.points.under(x, y, slack);
  if (!found.length) return null;
  const [{ photo }] = found;
  return { photo, turn: Math.round(x - mapState.points.x[photo]), stack: found.map((one) => one.photo) };
}

function setUpPointer(map, box) {
  let last = null;
  const hover = onceAFrame(() => {
    if (!last || mapState.pinned) return;
    const found = photosAt(last, SLACK_PX.mouse);
    box.classList.toggle("map-over-point", Boolean(found));
    if (found) showPhoto(found.photo, { turn: found.turn, stack: found.stack });
    else closePhoto();
  });
  map.on("mousemove", ({ latlng, originalEvent }) => {
    if (mapState.card.contains(originalEvent.target)) return;
    last = latlng;
    hover();
  });
  map.on("mouseout", () => {
    last = null;
    if (!mapState.pinned) closePhoto();
  });
  map.on("click", ({ latlng, originalEvent }) => {
    const found = photosAt(latlng, originalEvent.pointerType === "touch" ? SLACK_PX.touch : SLACK_PX.mouse);
    if (found) showPhoto(found.photo, { turn: found.turn, stack: found.stack, pinned: true });
    else closePhoto();
  });
}

function setUpKeys(map, box) {
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      closePhoto();
      box.focus({ preventScroll: true });
      return;
    }
    if (event.target !== box || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") openNearestToMiddle();
    else if (event.key === "n" || event.key === "N") stepInList(1);
    else if (event.key === "p" || event.key === "P") stepInList(-1);
    else return;
    event.preventDefault();
  });
}

function openNearestToMiddle() {
  const middle = mapState.map.getCenter();
  const [x, y] = [mercatorX(middle.lng), mercatorY(middle.lat)];
  let [nearest, least] = [-1, Infinity];
  for (const photo of mapState.points.drawn()) {
    const aside = mapState.points.x[photo] - x;
    const far = Math.hypot(aside - Math.round(aside), mapState.points.y[photo] - y);
    if (far < least) [nearest, least] = [photo, far];
  }
  if (nearest < 0) return;
  const turn = Math.round(x - mapState.points.x[nearest]);
  const stack = mapState.points.under(mapState.points.x[nearest], mapState.points.y[nearest], 0).map(({ photo }) => photo);
  showPhoto(nearest, { turn, stack, pinned: true });
  mapState.map.panInside(placeOnMap(nearest, turn), { padding: [40, 40], animate: !NO_MOTION });
}

// The wheel belongs to the page until the map is chosen.
function setUpWheel(map, box) {
  box.addEventListener("focusin", () => map.scrollWheelZoom.enable());
  box.addEventListener("focusout", () => map.scrollWheelZoom.disable());
  let waiting = 0;
  box.parentElement.addEventListener(
    "wheel",
    (event) => {
      const chosenMap = box.contains(document.activeElement);
      if (event.ctrlKey) map.scrollWheelZoom.enable();
      else if (!chosenMap) {
        map.scrollWheelZoom.disable();
        box.classList.add("map-wheel-hint");
        clearTimeout(waiting);
        waiting = setTimeout(() => box.classList.remove("map-wheel-hint"), 1200);
      }
    },
    { capture: true, passive: true },
  );
}

function placeOnMap(photo, turn) {
  const lat = Math.max(-EDGE_LATITUDE, Math.min(EDGE_LATITUDE, photos.mapLat[photo]));
  return L.latLng(lat, photos.mapLon[photo] + 360 * turn);
}

// Shows a photo's card and, if it has them, the way from truth to answer, its radius and its candidates.
function showPhoto(photo, { turn = 0, stack = [], pinned = false } = {}) {
  if (mapState.photo === photo && mapState.pinned === pinned && mapState.turn === turn) return;
  Object.assign(mapState, { photo, pinned, turn, stack });
  const actions = {
    close: () => {
      closePhoto();
      byId("map").focus({ preventScroll: true });
    },
    zoomToPoint: () => flyTo([placeOnMap(photo, turn)]),
    zoomToAnswer: () => flyTo([wayOf(photo, turn).at(-1)]),
    zoomToBoth: () => flyTo(wayOf(photo, turn)),
    open: (next, among) => {
      showPhoto(next, { turn, stack: among, pinned: true });
      mapState.card.querySelector(".card-stack button:last-child")?.focus();
    },
  };
  mapState.card.replaceChildren(...buildCard(photo, { pinned, stack, actions }));
  mapState.card.hidden = false;
  mapState.card.classList.toggle("card-pinned", pinned);
  drawChosen(photo, turn, pinned);
  moveCard();
  if (pinned) {
    byId("map-status").textContent = spokenWords(photo);
    markRow(photo);
  }
}

function closePhoto() {
  if (mapState.photo < 0) return;
  Object.assign(mapState, { photo: -1, pinned: false, stack: [] });
  mapState.card.hidden = true;
  mapState.card.replaceChildren();
  mapState.overlay.clearLayers();
  byId("map-status").textContent = "";
  markRow(-1);
}

function moveCard() {
  if (mapState.photo < 0) return;
  const point = hasPlace(mapState.photo)
    ? mapState.map.latLngToContainerPoint(placeOnMap(mapState.photo, mapState.turn))
    : mapState.map.getSize().divideBy(2);
  placeCard(mapState.card, mapState.map.getSize(), point, mapState.pinned);
}

// From where it was taken to where it was placed, beginning on the copy of the world that is looked at.
function wayOf(photo, turn) {
  const lon = photos.trueLon[photo] + 360 * turn;
  return greatCircle(photos.trueLat[photo], lon, photos.lat[photo], photos.lon[photo]);
}

function drawChosen(photo, turn, pinned) {
  const { overlay } = mapState;
  overlay.clearLayers();
  if (!hasPlace(photo)) return;
  const add = (layer) => overlay.addLayer(layer);
  const style = (className) => ({ className, pane: "chosen", interactive: false });
  let answer = null;
  if (!isEvaluation) answer = [photos.lat[photo], photos.lon[photo] + 360 * turn];
  else if (hasAnswer(photo)) {
    const way = wayOf(photo, turn);
    answer = way.at(-1);
    add(L.polyline(way, { ...style("way-back"), smoothFactor: 0.5 }));
    add(L.polyline(way, { ...style("way"), smoothFactor: 0.5 }));
  }
  if (answer && photos.radius[photo] > 0) {
    const ring = circleAround(answer[0], answer[1], photos.radius[photo]);
    // Filled and drawn apart: a ring around a pole is closed along the map's edge, which is no part of the circle.
    // Around a pole it goes on in the next copy of the world.
    for (const aside of ring ? (ring.length > CIRCLE_STEPS + 1 ? [-360, 0, 360] : [0]) : []) {
      const moved = ring.map(([lat, lon]) => [lat, lon + aside]);
      add(L.polygon(moved, { ...style("radius-inside"), stroke: false }));
      add(L.polyline(moved.slice(0, CIRCLE_STEPS + 1), { ...style("radius"), smoothFactor: 0.3 }));
    }
  }
  if (pinned && answer) {
    photos.candidates[photo]?.forEach(([, lat, lon], i) => {
      if (!isNumber(lat) || !isNumber(lon)) return;
      const near = lon - 360 * Math.round((lon - answer[1]) / 360);
      add(L.marker([lat, near], { ...style(), keyboard: false, icon: markIcon("candidate-mark", 14, String(i + 1)) }));
    });
  }
  if (isEvaluation && answer) add(L.marker(answer, { ...style(), keyboard: false, icon: markIcon("answer-mark", 16) }));
  add(L.circleMarker(placeOnMap(photo, turn), { ...style("chosen-ring"), radius: mapState.points.radius() + 3.5 }));
}

function markIcon(className, size, text = "") {
  return L.divIcon({ className: "", html: el("div", { class: className }, text), iconSize: [size, size] });
}

// Moves the map so that the places are in view beside the card, from wherever it is. Where they do not fit, the first
// of what matters does: a map cannot be zoomed out, nor moved, beyond the world's upper and lower edge.
function flyTo(places, first = places[0]) {
  const { map } = mapState;
  const room = roomBesideCard(map.getSize());
  const padding = L.point(room.left + room.right, room.top + room.bottom);
  let zoom = Math.min(FLIGHT_ZOOM, map.getBoundsZoom(L.latLngBounds(places), false, padding));
  let view = viewOf(places, zoom, room);
  if (!view.fits) view = viewOf([first], zoom, room);
  while (!view.fits && zoom < FLIGHT_ZOOM) {
    zoom += map.options.zoomSnap;
    view = viewOf([first], zoom, room);
  }
  const centre = map.unproject(view.centre, zoom);
  if (NO_MOTION) map.setView(centre, zoom, { animate: false });
  else map.flyTo(centre, zoom, { duration: 0.8 });
}

// What the card, the map's buttons and its edges take of it, in pixels. A card at the bottom grows with its picture, up
// to 62% of the map.
function roomBesideCard(size) {
  if (isNarrow(size)) return { left: 30, top: 30, right: 30, bottom: 0.62 * size.y + 20 };
  return { left: 60, top: 40, right: mapState.card.offsetWidth + 40, bottom: 40 };
}

// The middle of the map, in pixels of the world at a zoom, from which places are in the middle of the room, or as near
// to it as the world's edges let them be; and whether they are all within the room then.
function viewOf(places, zoom, { left, top, right, bottom }) {
  const size = mapState.map.getSize();
  const world = 256 * 2 ** zoom;
  const box = L.bounds(places.map((place) => mapState.map.project(place, zoom)));
  const centre = box.getCenter().add([(right - left) / 2, (bottom - top) / 2]);
  centre.y = Math.max(size.y / 2, Math.min(world - size.y / 2, centre.y));
  const corner = centre.subtract(size.divideBy(2));
  const fits =
    box.getSize().x <= size.x - left - right &&
    box.min.y - corner.y >= EDGE_ROOM &&
    box.max.y - corner.y <= size.y - Math.max(EDGE_ROOM, bottom - 12);
  return { centre, fits };
}

// What of the map belongs to a photo: the way from truth to answer, or the circle around its answer.
function extentOf(photo, turn) {
  if (isEvaluation && hasAnswer(photo)) return wayOf(photo, turn);
  const { lat, lng } = placeOnMap(photo, turn);
  const ring = photos.radius[photo] > 0 ? circleAround(lat, lng, photos.radius[photo]) : null;
  return ring ?? [[lat, lng]];
}

// Opens a photo of the list: its card, and the map goes to where it was taken and where it was placed.
function openFromList(photo) {
  closePhoto();
  if (!hasPlace(photo)) {
    showPhoto(photo, { pinned: true, stack: [photo] });
    return;
  }
  const turn = Math.round((mapState.map.getCenter().lng - photos.mapLon[photo]) / 360);
  showPhoto(photo, { turn, stack: [photo], pinned: true });
  flyTo(extentOf(photo, turn), placeOnMap(photo, turn));
}
