"""The world without photos: a toy world that renders its own (`toy`), on the land of `geoinfer.maps`."""

from geoinfer.maps import is_land, land_polygons, land_share

__all__ = ["is_land", "land_polygons", "land_share"]
