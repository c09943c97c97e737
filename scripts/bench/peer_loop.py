#!/usr/bin/env python3
"""Score a folder with Pillow and ONNX Runtime: one loop, or threads that decode ahead of it.

    scripts/bench/peer_loop.py --pipeline FILE --images DIR --out NPZ [--decode-threads N]

Without --decode-threads, the loop reads, decodes and runs the model one after the other. With it, N
threads decode while the loop runs the model: Pillow and ONNX Runtime release the interpreter's lock.
ONNX Runtime's threads wait without spinning, which would take cores from the decoding threads.
"""

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded
import onnxruntime  # noqa: E402

import peer  # noqa: E402

# Batches decoded ahead of the one that runs: one that is complete, and one being decoded.
BATCHES_AHEAD = 2


def in_batches(items, size):
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def decoded_in_turn(reference, paths):
    return (reference.tensor(path.read_bytes()) for path in paths)


def decoded_by_threads(reference, paths, threads):
    """Rows in the order of `paths`, decoded ahead by `threads` threads."""
    with ThreadPoolExecutor(threads) as pool:
        decoding = (pool.submit(lambda path=path: reference.tensor(path.read_bytes())) for path in paths)
        ahead = deque(islice(decoding, BATCHES_AHEAD * reference.batch_size))
        while ahead:
            row = ahead.popleft().result()
            ahead.extend(islice(decoding, 1))
            yield row


def main():
    parser = peer.arguments(__doc__)
    parser.add_argument("--decode-threads", type=int, default=0)
    args = parser.parse_args()

    options = onnxruntime.SessionOptions()
    if args.decode_threads:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    reference = peer.Reference(args.pipeline, session_options=options)
    reference.infer([np.zeros(reference.session.get_inputs()[0].shape[1:], np.float32)])  # warm up
    paths = peer.image_paths(args.images)

    started = time.perf_counter()
    if args.decode_threads:
        rows = decoded_by_threads(reference, paths, args.decode_threads)
    else:
        rows = decoded_in_turn(reference, paths)
    scores = np.concatenate([reference.infer(batch) for batch in in_batches(rows, reference.batch_size)])
    seconds = time.perf_counter() - started
    peer.save(args.out, [path.name for path in paths], scores, seconds)


if __name__ == "__main__":
    main()
