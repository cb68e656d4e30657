"""Maps of places: land outlines, a mask to ask, and the map of an index's references.

`land` and `countries` need NumPy and Pillow alone; what draws imports matplotlib
(the extra `report`) when it is called.
"""

from geoinfer.maps.base import Window, base_map, check_map_path, extent, map_window, save_map, world_window
from geoinfer.maps.countries import border_lines, coast_lines, country_land, country_polygons
from geoinfer.maps.land import is_land, land_polygons, land_share
from geoinfer.maps.references import draw_reference_map

__all__ = [
    "Window",
    "base_map",
    "border_lines",
    "check_map_path",
    "coast_lines",
    "country_land",
    "country_polygons",
    "draw_reference_map",
    "extent",
    "is_land",
    "land_polygons",
    "land_share",
    "map_window",
    "save_map",
    "world_window",
]
