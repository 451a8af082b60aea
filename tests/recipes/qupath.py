"""What QuPath's reader of GeoJSON makes of a file, by its rules, and nothing that it would leave out.

Source: QuPath, qupath-core/src/main/java/qupath/lib/io/QuPathTypeAdapters.java (PathObjectTypeAdapter.parseObject,
PathObjectCollectionTypeAdapter) and GsonTools.java (PathClassTypeAdapter), in the versions 0.4 to 0.6.
"""

import math
import uuid
from typing import Any

FEATURE = {"type", "id", "geometry", "nucleusGeometry", "properties"}
PROPERTIES = {
    "objectType", "name", "color", "classification", "isLocked", "isMissing", "measurements", "metadata",
    "childObjects",
}  # fmt: skip
OBJECT_TYPES = {"annotation", "detection", "cell", "tile", "tmaCore", "root"}
CLASSIFICATION = {"name", "names", "color"}


def read_as_qupath(collection: dict[str, Any]) -> list[dict[str, Any]]:
    """The features, each as `objectType`, `name`, `geometry`, `measurements`, `classification`.

    Raises:
        AssertionError: QuPath would refuse a part, or leave it out without a word.
    """
    assert collection["type"] == "FeatureCollection"
    found = []
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert set(feature) <= FEATURE, set(feature) - FEATURE
        if "id" in feature:
            uuid.UUID(feature["id"])  # anything else is dropped
        properties = feature["properties"]
        assert set(properties) <= PROPERTIES, set(properties) - PROPERTIES
        assert properties["objectType"] in OBJECT_TYPES
        assert isinstance(properties.get("isLocked", False), bool)
        assert properties["objectType"] == "cell" or "nucleusGeometry" not in feature
        for name in ("geometry", "nucleusGeometry"):
            if name in feature:
                _check_geometry(feature[name])
        classification = properties.get("classification", {"name": "none"})
        assert set(classification) <= CLASSIFICATION
        assert ("name" in classification) != ("names" in classification)
        for holder in (properties, classification):
            _check_colour(holder.get("color", [0, 0, 0]))
        measurements = properties.get("measurements", {})
        assert all(isinstance(key, str) and math.isfinite(float(value)) for key, value in measurements.items())
        assert all(isinstance(value, str) for value in properties.get("metadata", {}).values())
        found.append({
            "objectType": properties["objectType"], "name": properties.get("name"), "geometry": feature["geometry"],
            "measurements": measurements, "classification": classification,
        })  # fmt: skip
    return found


def _check_colour(colour: Any) -> None:
    assert isinstance(colour, list)
    assert len(colour) == 3
    assert all(isinstance(value, int) and 0 <= value <= 255 for value in colour)


def _check_geometry(geometry: dict[str, Any]) -> None:
    assert geometry["type"] in {"Polygon", "MultiPolygon"}
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for ring in (ring for polygon in polygons for ring in polygon):
        assert len(ring) >= 4
        assert ring[0] == ring[-1]
        assert all(len(point) == 2 and all(math.isfinite(value) for value in point) for point in ring)
