"""Makes docs/toy-world.jpg: one column a place, one row a drive there.

python docs/make_toy_sheet.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.world.toy import render

PICTURE = Path(__file__).with_name("toy-world.jpg")
PLACES = {
    "Paris": (48.86, 2.35),
    "London": (51.51, -0.13),
    "Helsinki": (60.17, 24.94),
    "Kansas": (38.5, -98.0),
    "Manaus": (-3.1, -60.0),
    "Lagos": (6.5, 3.4),
    "Sahara": (25.0, 10.0),
    "Nairobi": (-1.3, 36.8),
    "Delhi": (28.6, 77.2),
    "Yakutsk": (62.0, 129.7),
    "Tokyo": (35.7, 139.7),
    "Sydney": (-33.9, 151.2),
}
DRIVES = 4
SIZE = 96


def main() -> None:
    """Renders and writes the sheet."""
    rows = []
    for drive in range(DRIVES):
        seeds = 1000 * drive + np.arange(len(PLACES))
        rows.append(np.concatenate(list(render(np.array(list(PLACES.values())), seeds, size=SIZE)), axis=1))
    Image.fromarray(np.concatenate(rows, axis=0)).save(PICTURE, quality=85)
    print(f"{PICTURE.name}: {', '.join(PLACES)}")


if __name__ == "__main__":
    main()
