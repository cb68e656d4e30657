"""Maps of places: land outlines, a mask to ask, and the map of an index's references.

`land` needs NumPy and Pillow alone; what draws imports matplotlib (the extra `report`) when it is called.
"""

from geoinfer.maps.base import Window, base_map, check_map_path, extent, map_window, save_map
from geoinfer.maps.land import is_land, land_polygons, land_share
from geoinfer.maps.references import draw_reference_map

__all__ = [
    "Window",
    "base_map",
    "check_map_path",
    "draw_reference_map",
    "extent",
    "is_land",
    "land_polygons",
    "land_share",
    "map_window",
    "save_map",
]
