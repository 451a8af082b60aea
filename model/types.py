"""Names for the arrays that Maskwell passes around; shapes and ranges are part of the name."""

from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]  # (H, W) or (H, W, C in 1, 3, 4), as decoded: bool, integer or float; colour is R, G, B[, A]
Planes = npt.NDArray[np.float32]  # (C, H, W), normalised: what the network takes, before tiling
Batch = npt.NDArray[np.float32]  # (N, C, S, S), tiles of one side S
Logits = npt.NDArray[np.float32]  # (K, H, W) or (N, K, S, S), raw output of the network
Probability = npt.NDArray[np.float32]  # (H, W) in [0, 1]
Levels = npt.NDArray[np.uint16]  # (H, W), a probability in steps of 1/65535
Mask = npt.NDArray[np.bool_]  # (H, W), True = cell
Labels = npt.NDArray[np.int32]  # (H, W), 0 = background, cells are 1..n
