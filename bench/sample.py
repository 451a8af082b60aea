"""Write the picture that the page offers to try, app/static/sample.png: nuclei in fluorescence, 512 x 512 px, 8 bits.

pip download --no-deps stardist==0.9.2 && python bench/sample.py stardist-*.whl

A field of the 2018 Data Science Bowl (BBBC038v1, CC0), which StarDist ships as an example; its levels fit 8 bits. The
shipped weights may have been trained on it, so it shows what they do and proves nothing.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as PillowImage


def main() -> None:
    """Write it from the wheel that is given."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        image = tifffile.imread(io.BytesIO(wheel.read("stardist/data/images/img2d.tif")))
    path = Path("app/static/sample.png")
    # written once, fetched often: as small as it gets
    PillowImage.fromarray(image.astype(np.uint8)).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
