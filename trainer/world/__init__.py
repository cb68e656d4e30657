"""The world without photos: land outlines for maps, and a toy world that renders its own.

`land` needs NumPy and Pillow alone; `trainer.world.toy` is imported by those who render.
"""

from trainer.world.land import is_land, land_polygons, land_share

__all__ = ["is_land", "land_polygons", "land_share"]
