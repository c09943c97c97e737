#!/usr/bin/env python3
"""Score a folder with Apache Beam's RunInference, ONNX handler and Pillow.

    scripts/bench/peer_beam.py --pipeline FILE --images DIR --out NPZ [--workers N]
        [--job-endpoint HOST:PORT --pool HOST:PORT]

A single worker runs inside this process, several workers in processes of their own, both under Beam's
Python runner (FnApiRunner). With --job-endpoint the job runs there, and has its workers from the pool:
each task manager has N of them, and each transform 2 tasks.

RunInference loads the model before the first image is read, so the reported seconds include neither that
nor Beam's start. ONNX Runtime keeps its defaults: the handler takes session options, but Beam 2.77 cannot
pickle them.
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
from apache_beam.runners.portability.portable_runner import PortableRunner  # noqa: E402

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


def where(args):
    """The runner and its options."""
    if args.job_endpoint:
        flags = [f"--job_endpoint={args.job_endpoint}", "--environment_type=EXTERNAL", "--parallelism=2"]
        flags += [f"--environment_config={args.pool}", f"--sdk_worker_parallelism={args.workers}"]
        return PortableRunner(), PipelineOptions(flags)
    mode = "in_memory" if args.workers == 1 else "multi_processing"
    return FnApiRunner(), PipelineOptions(flags=[], direct_num_workers=args.workers, direct_running_mode=mode)


def main():
    parser = peer.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--job-endpoint", metavar="HOST:PORT", help="of a job service, for example Flink's")
    parser.add_argument("--pool", metavar="HOST:PORT", help="of Beam's Python worker pool, for --job-endpoint")
    args = parser.parse_args()

    reference = peer.Reference(args.pipeline)
    handler = OnnxModelHandlerNumpy(
        model_uri=str(reference.folder / reference.model["path"]),
        min_batch_size=reference.batch_size,
        max_batch_size=reference.batch_size,
        providers=["CPUExecutionProvider"],
    )
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # worker processes import peer, too
    runner, options = where(args)
    paths = [str(path) for path in peer.image_paths(args.images)]
    with beam.Pipeline(runner=runner, options=options) as pipeline:
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
