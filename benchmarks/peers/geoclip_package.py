"""GeoCLIP's own `predict`, a photo at a time, as its README shows.

With random weights of CLIP unless others are given: time does not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from pathlib import Path

import torch

from peers.protocol import HEADER, arguments, finished

TOP = 5


def random_clip(folder: Path) -> Path:
    """CLIP ViT-L/14 with random weights, in the files of the real one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from geoclip import GeoCLIP
    from transformers import CLIPImageProcessor

    torch.manual_seed(0)
    model = GeoCLIP(from_pretrained=False, clip_pretrained=False)
    model.image_encoder.CLIP.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


def load_package(clip: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from geoclip import GeoCLIP

        return GeoCLIP(clip_path=str(clip)).eval()


def main() -> None:
    options = arguments(__doc__)
    model = load_package(options.clip)
    started = time.perf_counter()
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for path in sorted(options.photos.glob("*.jpg")):
            places, probabilities = model.predict(str(path), TOP)
            writer.writerow((path, *places[0].tolist(), probabilities[0].item()))
    finished(time.perf_counter() - started)


def make_weights() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--make-weights", type=Path, required=True)
    random_clip(parser.parse_args().make_weights)


if __name__ == "__main__":
    make_weights() if "--make-weights" in sys.argv else main()
