"""Runs a small job on a Beam runner: check.py HOST:PORT of its job endpoint. The worker is in this process."""

import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

options = PipelineOptions(
    ["--runner=PortableRunner", f"--job_endpoint={sys.argv[1]}", "--environment_type=LOOPBACK", "--parallelism=2"]
)
with beam.Pipeline(options=options) as pipeline:
    count = (
        pipeline
        | beam.Create(range(100))
        | beam.Reshuffle()
        | beam.Map(lambda number: number * 2)
        | beam.combiners.Count.Globally()
    )
    assert_that(count, equal_to([100]))
