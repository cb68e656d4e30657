"""The reference that lies nearest to each photo's true place, on the Earth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geoinfer.errors import MissingPackageError
from geoinfer.geodesy import haversine_km, to_unit_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NearestOnEarth:
    """Finds the nearest of many places by a tree over their unit vectors: a longer chord is a longer arc."""

    def __init__(self, coordinates: NDArray[np.float64]) -> None:
        """Builds the tree; takes about a second a million places.

        Args:
            coordinates: (n, 2) degrees, at least one.

        Raises:
            MissingPackageError: SciPy is not installed.
        """
        try:
            from scipy.spatial import cKDTree
        except ImportError as error:
            raise MissingPackageError(
                f"SciPy cannot be imported: {error}", hint="pip install 'geoinfer-toolkit[report]'"
            ) from error
        self._coordinates = np.asarray(coordinates, np.float64)
        self._tree = cKDTree(to_unit_vectors(self._coordinates), balanced_tree=False, compact_nodes=False)

    def find(self, places: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest of the places that the tree was built of.

        Args:
            places: (q, 2) degrees, none of them NaN; q may be 0.

        Returns:
            Rows (q,) int64 and great-circle distances (q,) in km.
        """
        if len(places) == 0:
            return np.empty(0, np.int64), np.empty(0)
        _, rows = self._tree.query(to_unit_vectors(places))
        found = np.asarray(rows, np.int64)
        return found, haversine_km(places, self._coordinates[found])
