"""Score a running server on validation images, through HTTP as a user would.

    python bench/accuracy.py DATA --only docs/splits/dsb2018.txt [--url http://127.0.0.1:8000] [--model best_model]

DATA has image/ and instances/ or label/. Prints the mean Dice of the masks beside the one that the card states, and
the AP of the labels.
"""

import argparse
import io
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from model.metrics import average_precision, dice, match_counts
from training.data import find_pairs


def main() -> None:
    """Post each image twice, for the mask and for the labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", type=Path, required=True, help="file of image names, a line each, that are scored")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="best_model")
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=300) as client:
        card = client.get(f"/models/{options.model}").raise_for_status().json()["card"]
        names = set(options.only.read_text().split())
        pairs = [pair for pair in find_pairs(options.data) if pair.name in names]
        if len(pairs) != len(names):
            raise SystemExit(f"{options.only} names {len(names)} images, {options.data} holds {len(pairs)} of them")

        def post(path: Path, output: str) -> np.ndarray:
            with path.open("rb") as file:
                query = {"output": output, "model": options.model}
                answer = client.post("/segment", files={"file": file}, params=query).raise_for_status()
            return np.asarray(Image.open(io.BytesIO(answer.content)))

        dices = []
        counts = {threshold: np.zeros(3, dtype=int) for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)}
        for pair in tqdm(pairs, unit="image", disable=None):
            image, truth = pair.read()
            mask, labels = post(pair.image, "mask"), post(pair.image, "labels").astype(np.int32)
            if mask.shape != image.shape[:2] or not set(np.unique(mask)) <= {0, 255}:
                raise SystemExit(f"{pair.name}: the mask is {mask.shape} with values {np.unique(mask)}")
            dices.append(dice(truth > 0, mask > 0))
            for threshold, sums in counts.items():
                sums += match_counts(truth, labels, threshold)
    stated = card["scores"]["validation"]["dice"]
    print(f"{len(pairs)} images: Dice {np.mean(dices):.5f}; the card states {stated:.5f}")
    for threshold, (tp, fp, fn) in counts.items():
        print(f"AP at IoU {threshold}: {average_precision((int(tp), int(fp), int(fn))):.4f}")


if __name__ == "__main__":
    main()
