"""Maps of places: land outlines and drawing."""
