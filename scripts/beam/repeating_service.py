#!/usr/bin/env python3
"""A job service whose runner repeats bundles and splits them: Beam's FnApiRunner with the settings of its own tests.

    repeating_service.py --port N --counts FILE [--repeat N] [--workers N] [--split TRANSFORM]

- --repeat N: each bundle runs N more times before the run that counts.
- --split TRANSFORM: each bundle with this transform is asked to split, several times or until it declines. What it
  gives away becomes another bundle, which is split likewise.
- After each job a line of JSON in FILE has the numbers of bundles, of repetitions, of workers, and of accepted splits
  with the elements that they have given away.
"""

import argparse
import json
import threading
from pathlib import Path

from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner

# Of the elements that a bundle has not begun, this fraction stays with it: at first few go away, then half, then all.
FRACTIONS = (0.9, 0.5, 0.5, 0.25, 0.0)


class Counts:
    """What the runner has done in one job."""

    def __init__(self):
        self._lock = threading.Lock()
        self.numbers = {"bundles": 0, "repetitions": 0, "splits": 0, "given_away": 0}
        self.workers = set()

    def add(self, name, number=1):
        with self._lock:
            self.numbers[name] += number

    def line(self):
        return json.dumps(self.numbers | {"workers": len(self.workers)}) + "\n"


class CountingManager(fn_runner.BundleManager):
    """Runs a bundle, and counts it."""

    counts = Counts()

    def process_bundle(self, inputs, expected_outputs, fired_timers, expected_output_timers, dry_run=False):
        done = super().process_bundle(inputs, expected_outputs, fired_timers, expected_output_timers, dry_run)
        self.counts.add("repetitions" if dry_run else "bundles")
        self.counts.workers.add(self._worker_handler.worker_id)
        return done


def split_often(elements):
    """Asks a bundle for splits until it declines. A generator of fractions that is sent the answers."""
    for fraction in FRACTIONS:
        answer = yield fraction
        if answer is None:
            return
        for channel in answer.channel_splits:
            CountingManager.counts.add("splits")
            CountingManager.counts.add("given_away", elements - channel.first_residual_element)
            elements = channel.first_residual_element


class Job(local_job_service.BeamJob):
    """A job in a runner with the settings."""

    settings = None

    def _invoke_runner(self):
        self.set_state(local_job_service.beam_job_api_pb2.JobState.RUNNING)
        runner = fn_runner.FnApiRunner(bundle_repeat=self.settings.repeat, provision_info=self._provision_info)
        runner._num_workers = self.settings.workers  # an option only of pipelines in Python
        CountingManager.counts = Counts()
        try:
            return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())
        finally:
            with self.settings.counts.open("a") as file:
                file.write(CountingManager.counts.line())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--split", metavar="TRANSFORM")
    Job.settings = parser.parse_args()

    # the manager of several workers makes one of this class for each
    fn_runner.BundleManager = CountingManager
    if Job.settings.split:
        fn_runner._split_managers_from_context.append((Job.settings.split, split_often))
    service = local_job_service.LocalJobServicer(beam_job_type=Job)
    service.start_grpc_server(Job.settings.port)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
