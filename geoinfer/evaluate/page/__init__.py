"""The report that a browser shows: one file that needs nothing else and asks no network for anything."""
