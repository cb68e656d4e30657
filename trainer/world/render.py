"""Paints the toy world: one picture from the road for each pair of coordinates and seeds.

The camera stands at height 1 over a plane and looks along the road, which is why every length on the ground is in
heights of the camera. Pictures are painted from far to near: sky, hills, ground, sea, road, and what stands beside it;
then fog, light and the camera's own faults. All of it is arithmetic on (n, size, size) arrays.

Each random number is a hash of a seed and of the number's name, never the next one of a stream, so a photo comes out
the same alone, in a batch, and in whatever order.
"""

from __future__ import annotations

import functools
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.geodesy import as_coordinates
from trainer.world.fields import Look, look_at

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    # float32 of (n, size, size), or what broadcasts to it: (n, 1, 1), a number.
    Map = Any

_CHUNK: Final = 32
_TILE: Final = 256
_LANE: Final = 1.4
_TREE_DEPTHS: Final = (9.0, 7.0, 5.6, 4.6, 3.8, 3.1, 2.5)


def render(
    coordinates: ArrayLike,
    seeds: ArrayLike,
    *,
    scene_seeds: ArrayLike | None = None,
    size: int = 64,
    world_seed: int = 0,
) -> NDArray[np.uint8]:
    """Pictures of places.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude].
        seeds: (n,) integers; what differs between frames of one drive (objects, textures, noise).
        scene_seeds: (n,) integers; what frames of a drive share (weather, hour, season, camera). `seeds` if left out.
        size: side of the pictures in pixels.
        world_seed: which world, that is, which fields.

    Returns:
        (n, size, size, 3) uint8, RGB. A picture depends on its own row alone.

    Raises:
        ValueError: bad coordinates, or numbers of seeds that do not fit.
    """
    points = as_coordinates(coordinates)
    own = np.asarray(seeds, np.int64)
    shared = own if scene_seeds is None else np.asarray(scene_seeds, np.int64)
    if own.shape != (len(points),) or shared.shape != own.shape:
        raise ValueError(f"{len(points)} coordinates, but seeds of shapes {own.shape} and {shared.shape}")
    pictures = np.empty((len(points), size, size, 3), np.uint8)
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        look = look_at(points[part], world_seed)
        pictures[part] = _Painter(look, _Chance(own[part], 1), _Chance(shared[part], 2), size).paint()
    return pictures


class _Chance:
    """Random numbers by name: row i of every answer follows from `seeds[i]` and the name alone."""

    def __init__(self, seeds: NDArray[np.int64], stream: int) -> None:
        self._seeds = _scramble(seeds.view(np.uint64) + np.uint64(stream << 56))

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """(n, 1, 1) within [low, high)."""
        bits = self.bits(name) >> np.uint64(40)
        return (low + (high - low) * (bits.astype(np.float32) / np.float32(1 << 24))).astype(np.float32)[:, None, None]

    def normal(self, name: str) -> NDArray[np.float32]:
        """(n, 1, 1), standard normal (G. E. P. Box and M. E. Muller, Annals of Mathematical Statistics 29, 1958)."""
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(name + " radius").astype(np.float64)))
        return (radius * np.cos(2 * np.pi * self.uniform(name + " angle"))).astype(np.float32)

    def bits(self, name: str) -> NDArray[np.uint64]:
        """(n,) uint64."""
        return _scramble(self._seeds ^ _scramble(np.array([zlib.crc32(name.encode())], np.uint64)))


class _Painter:
    """One batch of pictures in the making."""

    def __init__(self, look: Look, own: _Chance, shared: _Chance, size: int) -> None:
        self.look, self.own, self.shared, self.size = look, own, shared, size
        line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size / 2) - np.float32(1.0)
        roll = 0.04 * shared.normal("roll") + 0.01 * own.normal("roll")
        zoom = np.exp(0.2 * shared.normal("zoom"))
        x, y = line[None, None, :] / zoom, line[None, :, None] / zoom
        self.horizon = np.clip(0.12 * shared.normal("tilt") + 0.02 * own.normal("tilt") - 0.05, -0.4, 0.35)
        self.x = x * np.cos(roll) + y * np.sin(roll)
        self.y = y * np.cos(roll) - x * np.sin(roll) - self.horizon
        self.pixel = np.float32(2.0 / size) / zoom
        self.below = _soft(self.y, self.pixel)
        # Close to the horizon the plane is further away than anything that is drawn on it.
        self.inverse_depth = np.maximum(self.y, np.float32(0.012))
        self.depth = 1.0 / self.inverse_depth
        self.ground_x = self.x * self.depth
        self.planes = [np.zeros((len(look.latitude), size, size), np.float32) for _ in range(3)]
        self._place_sun()
        self._weather()
        self.keep = np.where(look.drives_left, 1.0, -1.0).astype(np.float32)[:, None, None]
        self.half_road = (_LANE * _column(look.road_width)).astype(np.float32)
        self.middle = self.keep * self.half_road / 2

    def paint(self) -> NDArray[np.uint8]:
        """(n, size, size, 3) uint8."""
        self._sky()
        self._hills()
        self._ground()
        self._sea()
        self._road()
        self._buildings()
        self._trees()
        self._poles()
        self._sign()
        self._cars()
        return self._camera()

    def _place_sun(self) -> None:
        """Sun height and side from latitude, season and hour; roads lead east, give or take forty degrees."""
        latitude = np.deg2rad(_column(self.look.latitude))
        season = 2 * np.pi * self.shared.uniform("day of year")
        declination = np.deg2rad(-23.4) * np.cos(season)
        hour = np.deg2rad(28.0) * np.clip(self.shared.normal("hour"), -2.0, 2.0)
        up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
        # Components of the sun's direction towards east and north of the place.
        east = -np.cos(declination) * np.sin(hour)
        north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour)
        heading = np.deg2rad(40.0) * np.clip(self.shared.normal("heading"), -1.5, 1.5)
        self.sun_up = np.maximum(up, 0.12).astype(np.float32)
        self.sun_right = (-north * np.cos(heading) + east * np.sin(heading)).astype(np.float32)
        self.sun_ahead = (east * np.cos(heading) + north * np.sin(heading)).astype(np.float32)
        # 1 in the middle of the hemisphere's own winter, -1 in that of its summer; no seasons at the equator.
        self.winter = (np.cos(season) * np.tanh(_column(self.look.latitude) / 15.0)).astype(np.float32)

    def _weather(self) -> None:
        self.clouds = self.shared.uniform("clouds") ** np.float32(1.3)
        self.sunshine = np.clip(1.25 - 1.3 * self.clouds, 0.0, 1.0)
        self.fog = np.clip(self.shared.uniform("fog", -1.5, 1.0), 0.0, 1.0) ** 2
        self.haze = [0.72 - 0.04 * self.clouds, 0.77 - 0.06 * self.clouds, 0.84 - 0.10 * self.clouds]

    def _over(self, mask: Map, colour: list[Map]) -> None:
        """Paints a colour through a mask of opacity."""
        for plane, value in zip(self.planes, colour, strict=True):
            plane += mask * (value - plane)

    def _texture(self, u: Map, v: Map, name: str, *, fine: bool, chance: _Chance | None = None) -> Map:
        """Noise within [0, 1] at (u, v) in texels, from a place in the tile of each photo's own."""
        offset = (chance or self.own).bits(name + " offset")[:, None, None]
        column = np.floor(u).astype(np.int32) + (offset & np.uint64(_TILE - 1)).astype(np.int32)
        row = np.floor(v).astype(np.int32) + ((offset >> np.uint64(8)) & np.uint64(_TILE - 1)).astype(np.int32)
        return _tile(fine)[row & (_TILE - 1), column & (_TILE - 1)]

    def _sky(self) -> None:
        height = np.clip(-self.y, 0.0, 1.2) / 1.2
        blue = [0.24, 0.45, 0.80]
        up = 1.0 / (np.maximum(-self.y, 0.0) + 0.25)
        noise = self._texture(self.x * up * 24, up * 60, "sky", fine=False, chance=self.shared)
        cover = _soft(noise - (1.0 - self.clouds), np.float32(0.25)) * (0.45 + 0.55 * self.clouds)
        grey = self.shared.uniform("cloud grey", 0.55, 0.97)
        # Where the sun stands in the picture, far out of it when it is behind.
        ahead = np.maximum(self.sun_ahead, 0.25)
        glow = np.exp(-((self.x - self.sun_right / ahead) ** 2 + (self.y + self.sun_up / ahead) ** 2) / 0.35)
        glow = 0.5 * self.sunshine * glow
        for plane, low, high in zip(self.planes, self.haze, blue, strict=True):
            sky = low + (high - low) * height
            plane[...] = sky + cover * (grey - sky)
            plane += glow * (1.0 - plane)

    def _hills(self) -> None:
        """Two ranges, as high as the place's relief."""
        for name, share, distance in (("far hills", 1.0, 0.6), ("near hills", 0.6, 0.3)):
            profile = self._texture(self.x * 22 + 11, np.zeros_like(self.x), name, fine=False)
            smooth = self._texture(self.x * 7, np.zeros_like(self.x), name + " shape", fine=False)
            height = _column(self.look.relief) * share * (0.2 + 1.5 * (0.7 * smooth + 0.3 * profile)) - 0.01
            snow = _column(self.look.snow) * np.clip(0.5 + 0.5 * self.winter, 0.0, 1.0)
            colour = []
            for channel in range(3):
                near = 0.5 * _colour(self.look.soil, channel) + 0.5 * _colour(self.look.leaves, channel)
                near = near + snow * (0.9 - near)
                colour.append(near * (1 - distance) + self.haze[channel] * distance)
            self._over(_soft(height + self.y, self.pixel), colour)

    def _ground(self) -> None:
        look = self.look
        coarse = self._texture(self.ground_x * 9, self.depth * 9, "meadow", fine=False)
        fine = self._texture(self.ground_x * 40, self.depth * 40, "grit", fine=True)
        meadow = _soft(0.75 * coarse + 0.25 * fine - (1.0 - _column(look.cover)), np.float32(0.12))
        angle = _column(look.furrow_angle)
        across = self.ground_x * np.cos(angle) + self.depth * np.sin(angle)
        # Furrows fade out before they are finer than the pixels.
        fading = np.clip(1.5 - self.pixel * self.depth * self.depth * 2.0, 0.0, 1.0)
        furrow = 1.0 + 0.35 * _column(look.furrows) * fading * np.sin(across * 7.0 + 6.28 * self.own.uniform("furrow"))
        season = self.shared.normal("drought")
        snow = _column(look.snow) * np.clip(0.45 + 0.8 * self.winter + 0.3 * self.shared.normal("snow"), 0.0, 1.0)
        snow = _soft(snow + 0.3 * fine - 0.65, np.float32(0.35))
        colour = []
        for channel, dried in enumerate((0.05, 0.0, -0.03)):
            soil = _colour(look.soil, channel)
            grass = _colour(look.grass, channel) + dried * season
            ground = (soil + meadow * (grass - soil)) * furrow * (0.85 + 0.3 * fine)
            colour.append(ground + snow * (0.92 - ground))
        self._over(self.below, colour)

    def _sea(self) -> None:
        """A strip below the horizon on one side of the road, and across it on small islands."""
        coast = _column(self.look.coast)
        side = np.where(self.own.uniform("sea side") < 0.5, 1.0, -1.0)
        strip = coast * (0.10 + 0.16 * _soft(side * self.x - 0.6 + coast, np.float32(0.5)))
        mask = self.below * _soft(strip - self.y, self.pixel * 2) * np.clip(coast * 4.0, 0.0, 1.0)
        glint = 0.9 + 0.2 * self._texture(self.x * 60, self.y * 400, "glint", fine=True)
        self._over(mask, [_colour(self.look.sea, channel) * glint for channel in range(3)])

    def _road(self) -> None:
        blur = self.pixel * self.depth
        offset = self.ground_x - self.middle
        grain = 0.92 + 0.16 * self._texture(self.ground_x * 30, self.depth * 30, "asphalt", fine=True)
        asphalt = _column(self.look.asphalt) * grain
        self._over(self.below * _soft(self.half_road - np.abs(offset), blur), [asphalt, asphalt, asphalt * 1.02])
        yellow = self.look.yellow_lines[:, None, None]
        dashes = np.floor(self.depth * 0.9 + 2 * self.own.uniform("dashes")).astype(np.int32) & 1
        middle = self.below * _soft(0.07 - np.abs(offset), blur) * dashes
        edges = self.below * _soft(0.05 - np.abs(np.abs(offset) - self.half_road * 0.92), blur)
        worn = self.shared.uniform("worn", 0.55, 1.0)
        self._over(
            middle * worn, [np.where(yellow, 0.90, 0.88), np.where(yellow, 0.68, 0.88), np.where(yellow, 0.15, 0.86)]
        )
        self._over(edges * worn, [0.85, 0.85, 0.83])

    def _box(self, at: Map, depth: Map, width: Map, bottom: Map, top: Map) -> Map:
        """Opacity of an upright rectangle; lengths in heights of the camera, `at` its middle to the right."""
        across, height, blur = self._local(at, depth)
        inside = np.minimum(_soft(width - np.abs(across), blur), _soft(height - bottom, blur))
        return np.minimum(inside, _soft(top - height, blur))

    def _local(self, at: Map, depth: Map) -> tuple[Map, Map, Map]:
        """Position beside `at` and over the ground in an upright plane at `depth`, and a pixel's size there."""
        return self.x * depth - at, 1.0 - self.y * depth, self.pixel * depth

    def _beside(self, name: str, reach: float, margin: float) -> Map:
        """Somewhere left or right of the road."""
        away = self.half_road + margin + reach * self.own.uniform(name + " away") ** 2
        return self.middle + np.where(self.own.uniform(name + " side") < 0.5, -away, away)

    def _buildings(self) -> None:
        town = self.shared.uniform("town") ** 2
        for i, depth in enumerate((8.0, 5.5, 4.0)):
            name = f"building {i}"
            there = self.own.uniform(name) < town
            far = depth * self.own.uniform(name + " depth", 0.9, 1.1)
            width, height = self.own.uniform(name + " width", 0.7, 2.4), self.own.uniform(name + " height", 1.2, 4.5)
            at = self._beside(name, 5.0, 2.6)
            shade = self.own.uniform(name + " shade", 0.25, 0.95)
            walls = [shade * self.own.uniform(f"{name} {channel}", 0.6, 1.0) for channel in "rgb"]
            across, up, _ = self._local(at, far)
            windows = (np.floor(across * 2.5).astype(np.int32) & np.floor(up * 2.0).astype(np.int32) & 1) * 0.35
            self._over(self._box(at, far, width, 0.0, height) * there, [value * (1 - windows) for value in walls])
            roof = self._box(at, far, width * 1.1, height, height * 1.22) * there
            self._over(roof, [_colour(self.look.roofs, channel) + self._white() for channel in range(3)])

    def _white(self) -> Map:
        """What snow adds to the brightness of things that stand."""
        return 0.3 * _column(self.look.snow) * np.clip(self.winter, 0.0, 1.0)

    def _trees(self) -> None:
        look = self.look
        conifer, palm = _column(look.conifer), _column(look.palm)
        bare = np.clip(self.winter, 0.0, 1.0) * (1.0 - conifer) * np.clip(np.abs(_column(look.latitude)) / 50, 0.0, 1.0)
        autumn = self.shared.normal("autumn") * 0.05 * (1.0 - conifer)
        for i, depth in enumerate(_TREE_DEPTHS):
            name = f"tree {i}"
            # Trees grow out of the ground with the density, instead of popping up, so that looks stay continuous.
            grown = np.clip((_column(look.trees) - 0.8 * self.own.uniform(name)) * 5.0, 0.0, 1.0)
            far = depth * self.own.uniform(name + " depth", 0.85, 1.15)
            height = _column(look.tree_height) * np.exp(0.2 * self.own.normal(name + " height")) * grown + 0.01
            at = self._beside(name, 4.5, 0.7)
            across, up, blur = self._local(at, far)
            t = up / height
            stem = np.minimum(
                _soft(0.05 * height - np.abs(across), blur), _soft(0.6 + 0.3 * palm - t, np.float32(0.05))
            )
            stem = stem * _soft(up, blur) * grown
            self._shadow(at, far, height, grown)
            self._over(stem, [0.30, 0.23, 0.17])
            crown = np.clip((t - 0.12) / 0.88, 0.0, 1.0)
            ball = np.sqrt(np.clip(crown * (1 - crown), 0.0, None)) * 0.66
            tuft = np.sqrt(np.clip(1 - ((t - 0.88) / 0.12) ** 2, 0.0, None)) * 0.30
            profile = conifer * 0.26 * (1 - crown) + palm * tuft + (1 - conifer - palm) * ball
            ragged = self._texture(across * 14, up * 14, name + " leaves", fine=True)
            inside = _soft(profile * height * (0.75 + 0.5 * ragged) - np.abs(across), blur)
            inside = inside * _soft(t - 0.12, np.float32(0.03)) * _soft(1.0 - t, np.float32(0.03)) * grown
            lit = 1.0 + 0.45 * self.sunshine * np.clip(across / (0.3 * height) * np.sign(self.sun_right), -1.0, 1.0)
            lit = lit * (0.65 + 0.6 * ragged)
            white = self._white()
            leaves = [
                (_colour(look.leaves, channel) + turn * autumn) * lit + white
                for channel, turn in enumerate((1.6, 0.3, -0.5))
            ]
            self._over(inside * (1 - 0.6 * bare), leaves)

    def _shadow(self, at: Map, far: Map, height: Map, strength: Map) -> None:
        """A stripe on the ground, away from the sun and the longer the lower it stands."""
        length = np.minimum(height * np.sqrt(1 - self.sun_up**2) / self.sun_up, 5.0)
        side = -np.clip(self.sun_right * 2.5, -1.0, 1.0) * length
        along = (self.ground_x - at) / np.where(np.abs(side) < 0.2, 0.2, side)
        mask = self.below * _soft(0.35 - np.abs(self.depth - far), np.float32(0.3)) * _soft(along, np.float32(0.1))
        mask = mask * _soft(1.0 - along, np.float32(0.1)) * (0.6 * self.sunshine * strength)
        for plane in self.planes:
            plane *= 1.0 - mask

    def _poles(self) -> None:
        wooden = self.look.wooden_poles[:, None, None]
        wood, concrete = (0.36, 0.27, 0.20), (0.62, 0.61, 0.58)
        colour = [np.where(wooden, a, b).astype(np.float32) for a, b in zip(wood, concrete, strict=True)]
        side = -self.keep * np.where(self.shared.uniform("pole side") < 0.8, 1.0, -1.0)
        at = self.middle + side * (self.half_road + 0.8)
        there = self.shared.uniform("poles") < 0.65
        start = self.own.uniform("pole start", 0.0, 2.5)
        for i in (3, 2, 1, 0):
            depth = 2.2 + start + 2.5 * i
            mask = self._box(at, depth, np.where(wooden, 0.06, 0.09), 0.0, np.float32(4.2))
            bar = self._box(at, depth, np.where(wooden, 0.55, 0.2), np.float32(3.7), np.float32(3.85))
            self._over(np.maximum(mask, bar) * there, colour)

    def _sign(self) -> None:
        there = self.own.uniform("sign") < 0.55
        depth = self.own.uniform("sign depth", 1.9, 3.6)
        at = self.middle - self.keep * (self.half_road + 0.45)
        self._over(self._box(at, depth, np.float32(0.04), 0.0, np.float32(1.4)) * there, [0.5, 0.5, 0.52])
        across, up, blur = self._local(at, depth)
        diamond = self.look.diamond_signs[:, None, None]
        radius = np.where(diamond, np.abs(across) + np.abs(up - 1.6), np.hypot(across, up - 1.6))
        outer, inner = _soft(0.38 - radius, blur) * there, _soft(0.26 - radius, blur) * there
        self._over(outer, [np.where(diamond, 0.95, 0.80), np.where(diamond, 0.75, 0.10), np.where(diamond, 0.10, 0.12)])
        self._over(inner * ~diamond, [0.95, 0.95, 0.95])

    def _cars(self) -> None:
        for i, (share, lane) in enumerate(((0.45, 1.0), (0.3, -1.0))):
            name = f"car {i}"
            there = self.own.uniform(name) < share
            depth = self.own.uniform(name + " depth", 2.2, 7.0)
            at = self.middle + self.keep * lane * self.half_road / 2
            shade = self.own.uniform(name + " shade", 0.1, 1.0)
            paint = [shade * self.own.uniform(f"{name} {channel}", 0.3, 1.0) for channel in "rgb"]
            body = self._box(at, depth, np.float32(0.42), np.float32(0.12), np.float32(0.42))
            cabin = self._box(at, depth, np.float32(0.33), np.float32(0.4), np.float32(0.66))
            wheels = self._box(at, depth, np.float32(0.4), np.float32(0.0), np.float32(0.14))
            self._over(wheels * there, [0.06, 0.06, 0.06])
            self._over(cabin * there, [0.5 * value + 0.08 for value in paint])
            self._over(body * there, paint)

    def _camera(self) -> NDArray[np.uint8]:
        """Fog, light of the hour, white balance, exposure, saturation, vignette and noise."""
        shared = self.shared
        thick = self.fog * (1.0 - np.exp(-0.22 * self.depth * self.fog))
        thick = np.where(self.y < 0, self.fog * (1.0 - np.exp(-8.0 * self.fog)), thick).astype(np.float32)
        self._over(thick, [0.80, 0.81, 0.82])
        low = np.exp(-self.sun_up / 0.25) * self.sunshine
        bright = (0.62 + 0.45 * np.sqrt(self.sun_up)) * (0.75 + 0.25 * self.sunshine)
        bright = bright * np.exp(0.26 * shared.normal("exposure") + 0.05 * self.own.normal("exposure"))
        tint = 0.13 * shared.normal("tint")
        cast = 0.07 * shared.normal("cast")
        gains = (np.exp(tint) * (1 + 0.25 * low), np.exp(cast), np.exp(-tint) * (1 - 0.3 * low))
        grey = (self.planes[0] + self.planes[1] + self.planes[2]) / 3.0
        saturation = shared.uniform("saturation", 0.55, 1.25)
        vignette = bright * (1.0 - shared.uniform("vignette", 0.0, 0.3) * (self.x**2 + self.y**2))
        gamma = np.exp(0.22 * shared.normal("gamma"))
        noise = _noise(self.own.bits("noise"), self.size)
        level = shared.uniform("noise level", 0.005, 0.05)
        picture = np.empty((*grey.shape, 3), np.uint8)
        for channel, (plane, gain) in enumerate(zip(self.planes, gains, strict=True)):
            value = np.clip((grey + saturation * (plane - grey)) * vignette * gain, 0.0, 1.0) ** gamma
            value = value + level * noise[channel]
            picture[..., channel] = np.clip(value * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
        return picture


def _column(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n,) to (n, 1, 1) float32."""
    return values.astype(np.float32)[:, None, None]


def _colour(colours: NDArray[np.float64], channel: int) -> NDArray[np.float32]:
    """One channel of (n, 3) as (n, 1, 1)."""
    return _column(colours[:, channel])


def _soft(signed: Map, width: Map | np.float32) -> Map:
    """A step from 0 to 1 around 0 that is `width` wide: edges without staircases."""
    return np.clip(signed / width + np.float32(0.5), np.float32(0.0), np.float32(1.0))


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (G. Steele, D. Lea, C. Flood, OOPSLA 2014): a bijection that looks random."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _noise(seeds: NDArray[np.uint64], size: int) -> list[Map]:
    """Three maps of about normal noise: sums of two even numbers, scaled to variance 1."""
    pixels = np.arange(size * size, dtype=np.uint64).reshape(1, size, size)
    bits = _scramble(seeds[:, None, None] + pixels)
    parts = [((bits >> np.uint64(shift)) & np.uint64(0x3FF)).astype(np.float32) for shift in range(0, 60, 10)]
    scale = np.float32(np.sqrt(6.0) / 1023.0)
    return [(parts[2 * i] + parts[2 * i + 1] - np.float32(1023.0)) * scale for i in range(3)]


@functools.cache
def _tile(fine: bool) -> NDArray[np.float32]:
    """A periodic tile of noise within [0, 1], every value as frequent as any other."""
    rng = np.random.default_rng(8 if fine else 7)
    spectrum = np.fft.rfft2(rng.normal(size=(_TILE, _TILE)))
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :])
    spectrum *= np.exp(-((frequency * (2.5 if fine else 14.0)) ** 2))
    values = np.fft.irfft2(spectrum, s=(_TILE, _TILE))
    rank = np.argsort(np.argsort(values, axis=None)).reshape(values.shape)
    tile = (rank / (rank.size - 1)).astype(np.float32)
    tile.flags.writeable = False
    return tile
