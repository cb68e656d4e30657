"""Names of places: country, region and nearest city, offline."""
