// Places on the sphere and on the map. The map is the unit square of Web Mercator, (0, 0) its north-west corner; x goes
// on beyond 0 and 1 around the world.

const RADIANS = Math.PI / 180;
const EARTH_RADIUS_KM = 6371.0088;

// Web Mercator ends here, where the world becomes a square.
const EDGE_LATITUDE = 85.0511287798066;

const mercatorX = (lon) => lon / 360 + 0.5;

function mercatorY(lat) {
  const sine = Math.sin(Math.max(-EDGE_LATITUDE, Math.min(EDGE_LATITUDE, lat)) * RADIANS);
  return 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI);
}

// Great-circle distance in km, by the haversine formula.
function distanceKm(lat1, lon1, lat2, lon2) {
  const a = Math.sin(((lat2 - lat1) * RADIANS) / 2) ** 2;
  const b = Math.sin(((lon2 - lon1) * RADIANS) / 2) ** 2;
  const h = a + Math.cos(lat1 * RADIANS) * Math.cos(lat2 * RADIANS) * b;
  return 2 * EARTH_RADIUS_KM * Math.asin(Math.min(1, Math.sqrt(h)));
}

// Longitudes as one unbroken run: each is moved by whole turns to be within half a turn of the one before.
function unwrapped(points) {
  let before = points.length ? points[0][1] : 0;
  return points.map(([lat, lon]) => {
    before = lon - 360 * Math.round((lon - before) / 360);
    return [lat, before];
  });
}

function unitVector(lat, lon) {
  const [phi, lambda] = [lat * RADIANS, lon * RADIANS];
  return [Math.cos(phi) * Math.cos(lambda), Math.cos(phi) * Math.sin(lambda), Math.sin(phi)];
}

function placeOf([x, y, z]) {
  return [Math.atan2(z, Math.hypot(x, y)) / RADIANS, Math.atan2(y, x) / RADIANS];
}

// The shortest way from one place to another as [lat, lon] points, longitudes unbroken and beginning at lon1.
function greatCircle(lat1, lon1, lat2, lon2) {
  const [a, b] = [unitVector(lat1, lon1), unitVector(lat2, lon2)];
  const cross = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const sine = Math.hypot(...cross);
  const angle = Math.atan2(sine, a[0] * b[0] + a[1] * b[1] + a[2] * b[2]);
  if (sine < 1e-9) {
    // The same place, or the far side of the Earth, to which every way is as short: the one along the parallels will do.
    return [[lat1, lon1], [lat2, lon2 - 360 * Math.round((lon2 - lon1) / 360)]];
  }
  const steps = Math.max(2, Math.ceil(angle / RADIANS / 2));
  const points = [[lat1, lon1]];
  for (let i = 1; i < steps; i++) {
    const [s, t] = [Math.sin((1 - i / steps) * angle) / sine, Math.sin((i / steps) * angle) / sine];
    points.push(placeOf([s * a[0] + t * b[0], s * a[1] + t * b[1], s * a[2] + t * b[2]]));
  }
  points.push([lat2, lon2]);
  return unwrapped(points);
}

const CIRCLE_STEPS = 180;

// All places at a distance from one, as a ring of [lat, lon] that a map can fill. A ring around a pole is closed along
// the map's edge; null where both poles are inside, and so nearly all of the map.
function circleAround(lat, lon, km) {
  const angle = km / EARTH_RADIUS_KM;
  const north = angle > (90 - lat) * RADIANS;
  if (north && angle > (90 + lat) * RADIANS) return null;
  const [phi, lambda] = [lat * RADIANS, lon * RADIANS];
  const here = unitVector(lat, lon);
  const northward = [-Math.sin(phi) * Math.cos(lambda), -Math.sin(phi) * Math.sin(lambda), Math.cos(phi)];
  const eastward = [-Math.sin(lambda), Math.cos(lambda), 0];
  const ring = [];
  for (let i = 0; i <= CIRCLE_STEPS; i++) {
    const bearing = (2 * Math.PI * i) / CIRCLE_STEPS;
    const [n, e] = [Math.sin(angle) * Math.cos(bearing), Math.sin(angle) * Math.sin(bearing)];
    ring.push(placeOf(here.map((along, axis) => Math.cos(angle) * along + n * northward[axis] + e * eastward[axis])));
  }
  // On the copy of the world that the middle is on.
  const turns = 360 * Math.round((lon - ring[0][1]) / 360);
  return closedRing(unwrapped(ring).map(([y, x]) => [y, x + turns]), north ? 90 : -90);
}

// A ring whose longitudes end a whole turn away from where they begin goes around a pole, and is closed along the edge.
function closedRing(ring, pole) {
  const [first, last] = [ring[0], ring[ring.length - 1]];
  if (Math.abs(last[1] - first[1]) < 180) return ring;
  return [...ring, [pole, last[1]], [pole, first[1]]];
}
