"""Names of places: country, region and nearest city, offline."""

from geoinfer.places.coverage import Coverage, measure_coverage
from geoinfer.places.places import CONTINENTS, Place, Places, continent_of, country_codes, country_name

__all__ = [
    "CONTINENTS", "Coverage", "Place", "Places", "continent_of", "country_codes", "country_name", "measure_coverage",
]  # fmt: skip
