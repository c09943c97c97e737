#!/usr/bin/env python3
"""Score a folder with Apache Beam's RunInference, ONNX handler and Pillow.

    scripts/bench/peer_beam.py --pipeline FILE --images DIR --out NPZ [--workers N]

A single worker runs inside this process, several workers in processes of their own, both under Beam's
Python runner (FnApiRunner). RunInference loads the model before the first image is read, so the
reported seconds include neither that nor Beam's start. ONNX Runtime keeps its defaults: the handler
takes session options, but Beam 2.77 cannot pickle them.
"""

import os
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when ONNX Runtime is loaded, also by worker processes

import apache_beam as beam  # noqa: E402
import numpy as np  # noqa: E402
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference  # noqa: E402
from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # noqa: E402

import peer  # noqa: E402


class Decode(beam.DoFn):
    """Path to ((file name, time at which its reading started), row of the model's input)."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def setup(self):
        self.reference = peer.Reference(self.pipeline)

    def process(self, path):
        started = time.time()
        yield (Path(path).name, started), self.reference.tensor(Path(path).read_bytes())


def to_scores(element):
    (name, started), prediction = element
    return name, np.asarray(prediction.inference).ravel(), started


def save(results, out):
    finished = time.time()
    names, scores, started = zip(*sorted(results, key=lambda result: result[0]), strict=True)
    peer.save(out, names, scores, finished - min(started))


def main():
    parser = peer.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    reference = peer.Reference(args.pipeline)
    handler = OnnxModelHandlerNumpy(
        model_uri=str(reference.folder / reference.model["path"]),
        min_batch_size=reference.batch_size,
        max_batch_size=reference.batch_size,
        providers=["CPUExecutionProvider"],
    )
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # worker processes import peer, too
    options = PipelineOptions(
        flags=[],
        direct_num_workers=args.workers,
        direct_running_mode="in_memory" if args.workers == 1 else "multi_processing",
    )
    paths = [str(path) for path in peer.image_paths(args.images)]
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        (
            pipeline
            | beam.Create(paths)
            | beam.Reshuffle()
            | beam.ParDo(Decode(args.pipeline))
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(to_scores)
            | beam.combiners.ToList()
            | beam.Map(save, str(args.out))
        )


if __name__ == "__main__":
    main()
