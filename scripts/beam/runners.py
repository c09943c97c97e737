"""Starts and stops the runners through scripts/beam-runners.sh, and finds their processes."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "beam-runners.sh"

# Processes of each runner, by the names that the script gives them. The last one has the job endpoint.
PARTS = {
    "python": ["python"],
    "prism": ["prism"],
    "flink": ["flink"],
    "flink-cluster": ["flink-jobmanager", "flink-taskmanager-1", "flink-taskmanager-2", "flink-cluster"],
    "spark": ["spark"],
    "spark-cluster": ["spark-master", "spark-worker-1", "spark-worker-2", "spark-cluster"],
}


class Runners:
    """The runners that use the 50 ports from `first_port` on."""

    def __init__(self, first_port):
        self.first_port = first_port
        self._run = ROOT / ".deps" / "beam" / "run" / str(first_port)

    def _script(self, command, *names):
        environment = os.environ | {"BEAM_RUNNERS_PORT": str(self.first_port)}
        done = subprocess.run([SCRIPT, command, *names], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"beam-runners.sh {command} {' '.join(names)} failed: {done.stderr}")
        return done.stdout

    def start(self, name):
        """Start what does not run of a runner; returns its job endpoint."""
        return self._script("start", name).split()[1]

    def stop(self, name):
        self._script("stop", name)

    @contextlib.contextmanager
    def running(self, name):
        """A runner that runs within the block; gives its job endpoint."""
        try:
            yield self.start(name)
        finally:
            self.stop(name)

    def log(self, part):
        """The log of one of the runner's processes."""
        return (self._run / f"{part}.log").read_text(errors="replace")

    def process(self, part):
        """One of the runner's processes, or None if it does not run."""
        return processes.find(self._group(part))

    def workers(self, runner, binary):
        """The processes of a PROCESS environment that the runner has started."""
        return self._descendants(runner, lambda words: words[:1] == [str(binary)])

    def executors(self, runner):
        """Spark's executors."""
        return self._descendants(runner, lambda words: any(".CoarseGrainedExecutorBackend" in word for word in words))

    def _descendants(self, runner, is_wanted):
        return processes.in_groups({self._group(part) for part in PARTS[runner]}, is_wanted)

    def _group(self, part):
        try:
            return int((self._run / f"{part}.pid").read_text())
        except FileNotFoundError:
            return -1
