#!/usr/bin/env python3
"""Score a folder with PyTorch: a DataLoader whose workers decode with Pillow, a network in fp16.

    scripts/bench/peer_torch.py --images DIR [--copies 12] [--workers 16] [--batch 128] [--side 384]

The network is torchvision's EfficientNetV2-S with random weights, in fp16 and channels last, run
eagerly: at 1280x960 it waits for the workers. Images are copied to the GPU as bytes and normalised
there. Prints one JSON object: images/s without the network's warm-up and the start of the workers.
All images count, those of the first batches included: when the first batch arrives, every worker has
finished one in the same time.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image


class Folder(torch.utils.data.Dataset):
    """The images of a folder, each `copies` times, resized."""

    def __init__(self, folder, copies, side):
        self.paths = sorted(folder.iterdir()) * copies
        self.side = side

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = Image.open(self.paths[index]).convert("RGB")
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(image).copy())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=12)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=384)
    args = parser.parse_args()

    network = torchvision.models.efficientnet_v2_s(weights=None).eval().cuda().half()
    network = network.to(memory_format=torch.channels_last)
    loader = torch.utils.data.DataLoader(
        Folder(args.images, args.copies, args.side),
        batch_size=args.batch,
        num_workers=args.workers,
        pin_memory=True,
        drop_last=True,
        prefetch_factor=4,
    )

    @torch.inference_mode()
    def scores(pixels):
        pixels = pixels.cuda(non_blocking=True).permute(0, 3, 1, 2).half() / 255
        return network(pixels.contiguous(memory_format=torch.channels_last)).float().softmax(1).cpu()

    for _ in range(5):
        scores(torch.zeros(args.batch, args.side, args.side, 3, dtype=torch.uint8))
    batches = iter(loader)  # starts the workers; their work counts from here on
    started, images = time.perf_counter(), 0
    for batch in batches:
        scores(batch)
        images += len(batch)
    seconds = time.perf_counter() - started
    print(json.dumps({"images": images, "seconds": seconds, "images_per_second": images / seconds}))


if __name__ == "__main__":
    main()
