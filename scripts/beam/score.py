"""Scores images with sluice on any runner of Beam, and counts the rows by status.

score.py URIS PIPELINE EXPANSION_SERVICE COUNTS [OPTION OF THE RUNNER]...
URIS is a file with one URI in each line: shards, folders or globs. PIPELINE is a pipeline file. COUNTS is written.
"""

import json
import os
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

uris, file, expansion_service, counts, *options = sys.argv[1:]
payload = json.dumps({"path": os.path.abspath(file)}).encode()
with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
    (
        pipeline
        | beam.io.ReadFromText(uris)
        | beam.ExternalTransform("sluice:transform:score:v1", payload, expansion_service)
        | beam.FlatMap(lambda report: json.loads(report)["rows_by_status"].items())
        | beam.CombinePerKey(sum)
        | beam.MapTuple(lambda status, rows: f"{status} {rows}")
        | beam.io.WriteToText(counts, shard_name_template="")
    )
