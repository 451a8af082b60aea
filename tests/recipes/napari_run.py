"""Open an image, its labels and its overlay through napari's own readers, without a window: IMAGE LABELS OUT.npy."""

import sys

import numpy as np
from napari.components import ViewerModel  # napari.Viewer, less the window
from npe2 import PluginManager


def main() -> None:
    image, labels, out = sys.argv[1:]
    PluginManager.instance().discover()  # as napari does when it starts
    viewer = ViewerModel()
    [picture] = viewer.open(image, plugin="napari")
    [cells] = viewer.open(labels, plugin="napari", layer_type="labels")
    assert picture.data.shape[:2] == cells.data.shape, (picture.data.shape, cells.data.shape)
    assert type(cells).__name__ == "Labels", type(cells)
    np.save(out, np.asarray(cells.data))


if __name__ == "__main__":
    main()
