"""The plain loop that comes with a paper: open a photo with Pillow, transform it, ask the model, search, next."""

from __future__ import annotations

import csv
import time

import torch
from PIL import Image
from torchvision import transforms

from peers.protocol import HEADER, arguments, finished, open_references
from trainer.efficientnet_lite import load_efficientnet_lite

SIZE = 260
NEIGHBOURS = 10


def main() -> None:
    options = arguments(__doc__)
    model = load_efficientnet_lite(2)
    index, coordinates = open_references()
    transform = transforms.Compose(
        [
            transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    paths = sorted(options.photos.glob("*.jpg"))
    with torch.inference_mode(), options.output.open("w", newline="") as file:
        model(torch.zeros(1, 3, SIZE, SIZE))  # the first call takes longer, and belongs to the start
        writer = csv.writer(file)
        writer.writerow(HEADER)
        started = time.perf_counter()
        for path in paths:
            image = transform(Image.open(path).convert("RGB"))
            embedding = torch.nn.functional.normalize(model(image[None]))
            similarities, ids = index.search(embedding.numpy(), NEIGHBOURS)
            latitude, longitude = coordinates[ids[0, 0]]
            writer.writerow((path, latitude, longitude, similarities[0, 0]))
    finished(time.perf_counter() - started)


if __name__ == "__main__":
    main()
