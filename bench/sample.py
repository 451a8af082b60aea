"""Draw the picture that the page offers to try: drawn cells, the same each time.

python bench/sample.py
"""

from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from training.synthesize import draw_cells

SIDE_PX = 512
SEED = 3


def main() -> None:
    """Write app/static/sample.png."""
    image, _ = draw_cells(SIDE_PX, np.random.default_rng(SEED))
    path = Path("app/static/sample.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(image).save(path, optimize=True)  # drawn once, fetched often: as small as it gets
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
