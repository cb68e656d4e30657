"""The way of timm's `inference.py`: its dataset, its loader with worker processes, batches of 64, a file at the end."""

from __future__ import annotations

import logging
import os
import time

import numpy as np
import torch
from timm.data import create_dataset, create_loader

from peers.protocol import arguments, finished, open_references, write_rows
from trainer.efficientnet_lite import load_efficientnet_lite

SIZE = 260
BATCH = 64
NEIGHBOURS = 10


def main() -> None:
    options = arguments(__doc__)
    logging.basicConfig()  # so that what the dataset says of files that it leaves out is seen
    model = load_efficientnet_lite(2)
    index, coordinates = open_references()
    half = (0.5, 0.5, 0.5)
    loader = create_loader(
        create_dataset("", root=str(options.photos)),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        interpolation="bicubic",
        mean=half,
        std=half,
        crop_pct=1.0,
        num_workers=len(os.sched_getaffinity(0)),
        device=torch.device("cpu"),
    )
    outputs = []
    with torch.inference_mode():
        model(torch.zeros(1, 3, SIZE, SIZE))
        started = time.perf_counter()
        for images, _ in loader:
            outputs.append(torch.nn.functional.normalize(model(images)).numpy())
    similarities, ids = index.search(np.concatenate(outputs), NEIGHBOURS)
    paths = loader.dataset.filenames(absolute=True)
    nearest = zip(paths, coordinates[ids[:, 0]].tolist(), similarities[:, 0].tolist(), strict=True)
    write_rows(options.output, [(path, *place, similarity) for path, place, similarity in nearest])
    finished(time.perf_counter() - started)


if __name__ == "__main__":
    main()
