// The photos on the map: one canvas for all of them, and a grid that says which lie under the pointer.

const CELLS = 256;

// Places in the unit square of the map, sorted into CELLS × CELLS cells; x goes around the world.
class PlaceGrid {
  constructor(x, y, members) {
    this.x = x;
    this.y = y;
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    this.members = new Uint32Array(members.length);
    const cell = (i) => this._row(y[i]) * CELLS + this._column(x[i]);
    for (const i of members) this.starts[cell(i) + 1]++;
    for (let c = 0; c < CELLS * CELLS; c++) this.starts[c + 1] += this.starts[c];
    const next = this.starts.slice();
    for (const i of members) this.members[next[cell(i)]++] = i;
  }

  _row(y) {
    return Math.max(0, Math.min(CELLS - 1, Math.floor(y * CELLS)));
  }

  _column(x) {
    return ((Math.floor(x * CELLS) % CELLS) + CELLS) % CELLS;
  }

  // Those within a distance of a place, the nearest first.
  within(x, y, distance) {
    const found = [];
    const reach = Math.min(CELLS / 2, Math.ceil(distance * CELLS));
    const [top, bottom] = [this._row(y - distance), this._row(y + distance)];
    const middle = Math.floor(x * CELLS);
    const columns = Math.min(CELLS, 2 * reach + 1);
    for (let row = top; row <= bottom; row++) {
      for (let step = 0; step < columns; step++) {
        const cell = row * CELLS + this._column((middle - reach + step) / CELLS);
        for (let at = this.starts[cell]; at < this.starts[cell + 1]; at++) {
          const photo = this.members[at];
          const aside = this.x[photo] - x;
          const far = Math.hypot(aside - Math.round(aside), this.y[photo] - y);
          if (far <= distance) found.push({ photo, far });
        }
      }
    }
    return found.sort((a, b) => a.far - b.far || a.photo - b.photo);
  }
}

// All photos that have a place, in an order that is mixed, and always the same, so that no band hides another by coming
// later; crosses first.
function drawingOrder() {
  const key = (photo) => (Math.imul(photo + 1, 0x9e3779b1) >>> 0) + (bands[photos.band[photo]].cross ? 0 : 2 ** 32);
  const keys = Float64Array.from({ length: photos.count }, (_, photo) => key(photo));
  return [...keys.keys()].filter(hasPlace).sort((a, b) => keys[a] - keys[b]);
}

const PointsLayer = SheetLayer.extend({
  initialize(options) {
    SheetLayer.prototype.initialize.call(this, options);
    this.x = photos.mapLon.map(mercatorX);
    this.y = photos.mapLat.map(mercatorY);
    this._sprites = new Map();
    this._order = drawingOrder();
    this.show(new Uint8Array(photos.count));
  },

  // Draws the photos that are chosen, 1 in the mask.
  show(mask) {
    this._drawn = this._order.filter((photo) => mask[photo]);
    this._grid = new PlaceGrid(this.x, this.y, this._drawn);
    this.draw();
  },

  refreshColours() {
    this._sprites.clear();
    this.draw();
  },

  drawn() {
    return this._drawn;
  },

  // Larger the fewer there are, and the nearer one looks.
  radius() {
    const base = this._drawn.length > 5000 ? 2.6 : this._drawn.length > 1000 ? 3.2 : 4.4;
    return Math.min(8, base + 0.4 * Math.max(0, this._map.getZoom() - 2));
  },

  // Those under a place of the unit square, nearest first; `slack` in pixels of the screen.
  under(x, y, slack) {
    return this._grid.within(x, y, (this.radius() + slack) / (256 * 2 ** this._map.getZoom()));
  },

  paint(context, view) {
    const radius = this.radius() * view.ratio;
    const sprites = bands.map((_, band) => this._sprite(band, radius));
    const unit = view.scale * view.ratio;
    const half = sprites[0].width / 2;
    const margin = half / unit;
    // Which band was drawn last at each pixel of the screen: photos on top of each other, of one colour, are drawn once.
    const wide = Math.ceil((view.east - view.west + 2 * margin) * view.scale) + 2;
    const high = Math.ceil((view.south - view.north + 2 * margin) * view.scale) + 2;
    const last = new Uint8Array(wide * high);
    context.setTransform(1, 0, 0, 1, 0, 0);
    for (let turn = Math.floor(view.west - margin); turn <= Math.floor(view.east + margin); turn++) {
      const [west, east] = [view.west - turn - margin, view.east - turn + margin];
      for (const photo of this._drawn) {
        const [x, y] = [this.x[photo], this.y[photo]];
        if (x < west || x > east || y < view.north - margin || y > view.south + margin) continue;
        const pixel = Math.floor((x - west) * view.scale) + wide * Math.floor((y - view.north + margin) * view.scale);
        if (last[pixel] === photos.band[photo] + 1) continue;
        last[pixel] = photos.band[photo] + 1;
        const left = Math.round((x + turn - view.west) * unit - half);
        context.drawImage(sprites[photos.band[photo]], left, Math.round((y - view.north) * unit - half));
      }
    }
  },

  _sprite(band, radius) {
    const key = `${band} ${radius}`;
    if (!this._sprites.has(key)) this._sprites.set(key, drawSprite(band, radius));
    return this._sprites.get(key);
  },
});

function drawSprite(band, radius) {
  const ratio = window.devicePixelRatio || 1;
  const sprite = el("canvas");
  sprite.width = sprite.height = 2 * Math.ceil(radius + 1.5 * ratio);
  const context = sprite.getContext("2d");
  const middle = sprite.width / 2;
  context.beginPath();
  if (bands[band].cross) {
    const arm = 0.8 * radius;
    context.moveTo(middle - arm, middle - arm);
    context.lineTo(middle + arm, middle + arm);
    context.moveTo(middle + arm, middle - arm);
    context.lineTo(middle - arm, middle + arm);
    context.lineWidth = 1.8 * ratio;
    context.strokeStyle = bandColour(band);
    context.stroke();
    return sprite;
  }
  context.arc(middle, middle, radius, 0, 2 * Math.PI);
  context.fillStyle = bandColour(band);
  context.fill();
  context.lineWidth = 0.75 * ratio;
  context.strokeStyle = styleColour("--dot-edge");
  context.stroke();
  return sprite;
}
