"""Runs a command, or `sluice run`, and measures its time and memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Time and memory of a process."""

    wall_seconds: float
    peak_rss_mb: float  # 10**6 bytes; of the largest process if it starts others


def run(command):
    """Run a command that must succeed; its output is shown only if it fails."""
    command = [str(word) for word in command]
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, resources = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.stderr.buffer.write(output.read())
            sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    # Linux reports KiB
    return Usage(wall_seconds, resources.ru_maxrss * 1024 / 1e6)


def run_sluice(sluice, pipeline, inputs, output, settings=()):
    """Run `sluice run`; returns its usage and the summary in its manifest."""
    command = [sluice, "run", pipeline, "--output", output]
    command += [word for uri in inputs for word in ("--input", uri)]
    command += [word for setting in settings for word in ("--set", setting)]
    usage = run(command)
    return usage, json.loads((Path(output) / "_manifest.json").read_text())["summary"]


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
