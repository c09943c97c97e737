"""The commands of sluice as a user calls them: run, verify, beam submit, and a pool of workers."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A command that takes longer has hung.
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """A command that has ended, or was killed at its limit."""

    code: int  # negative: the signal that ended it
    seconds: float
    text: str  # standard output and standard error

    def reason(self):
        """The last line of the log at level ERROR, or the last line."""
        lines = self.text.strip().splitlines() or [""]
        errors = [line for line in lines if "ERROR" in line]
        return (errors or lines)[-1]


class Running:
    """A command that runs."""

    def __init__(self, command, environment):
        self._output = tempfile.TemporaryFile()
        self._started = time.monotonic()
        command = [str(word) for word in command]
        self._child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )

    def is_running(self):
        return self._child.poll() is None

    def seconds(self):
        return time.monotonic() - self._started

    def text(self):
        # read at an offset: the position of the file belongs to the command, too
        descriptor = self._output.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def interrupt(self):
        self._child.send_signal(signal.SIGINT)

    def wait(self, limit=LIMIT_SECONDS):
        try:
            self._child.wait(max(0.0, limit - self.seconds()))
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        ended = Ended(self._child.returncode, self.seconds(), self.text())
        self._output.close()
        return ended


class Sluice:
    """The binary under test, with the ONNX Runtime that scripts/setup.sh installs unless another is set."""

    def __init__(self, binary):
        self.binary = Path(binary).resolve()
        libraries = sorted((ROOT / ".deps" / "onnxruntime").glob("libonnxruntime.so.*.*"))
        self.library = os.environ.get("ORT_DYLIB_PATH") or str(libraries[-1])
        self.environment = os.environ | {"ORT_DYLIB_PATH": self.library, "ORT_DISABLE_TELEMETRY": "1"}

    def start(self, *arguments):
        return Running([self.binary, *arguments], self.environment)

    def run(self, pipeline, inputs, output, *arguments):
        return self.start("run", *addresses(pipeline, inputs, output), *arguments).wait()

    def verify(self, output):
        return self.start("verify", output).wait()

    def submit(self, pipeline, inputs, output, endpoint, environment="process", *arguments):
        """Start `sluice beam submit`."""
        command = ["beam", "submit", *addresses(pipeline, inputs, output), "--job-endpoint", endpoint]
        command += ["--environment", environment, "--parallelism", 2]
        if environment == "process":
            # a worker has the variables of its runner
            command += ["--worker-env", f"ORT_DYLIB_PATH={self.library}"]
        return self.start(*command, *arguments)


def addresses(pipeline, inputs, output):
    return [pipeline, *(word for uri in inputs for word in ("--input", uri)), "--output", output]


class Pool:
    """A pool of workers at a port. A pool that ends is started again, as a supervisor does, until `stop`."""

    def __init__(self, sluice, port, log):
        self._sluice, self._log = sluice, Path(log)
        self._lock, self._stopping = threading.Lock(), False
        self.address = f"127.0.0.1:{port}"
        self._log.write_bytes(b"")
        self._start()
        self._supervisor = threading.Thread(target=self._supervise)
        self._supervisor.start()

    @property
    def environment(self):
        return f"external={self.address}"

    @property
    def pid(self):
        return self._child.pid

    def _start(self):
        offset = self._log.stat().st_size
        command = [str(self._sluice.binary), "--log-format", "json", "beam", "worker", "--pool", self.address]
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                command, env=self._sluice.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not is_ready(self._log.read_bytes()[offset:]):
            if self._child.poll() is not None:
                raise RuntimeError(f"the pool ended at its start: {self._log.read_text()}")
            time.sleep(0.005)

    def _supervise(self):
        while True:
            self._child.wait()
            with self._lock:
                if self._stopping:
                    return
                self._start()

    def log(self):
        return self._log.read_text(errors="replace")

    def stop(self):
        """End the pool; returns its exit code."""
        with self._lock:
            self._stopping = True
            self._child.send_signal(signal.SIGTERM)
        self._supervisor.join()
        return self._child.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def is_ready(log):
    """Whether the log has the line that names the pool's address."""
    whole = [line for line in log.splitlines(keepends=True) if line.endswith(b"\n")]
    return any("address" in json.loads(line) for line in whole if line.startswith(b"{"))
