"""Part `repeat`: Beam's FnApiRunner runs each bundle three times, on 4 workers, and splits bundles."""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import inputs
import rows
from claims import say


@dataclass(frozen=True)
class Setting:
    what: str
    repeat: int
    workers: int
    split: bool


SETTINGS = [
    Setting("bundle_repeat=2, 4 workers", 2, 4, False),
    # with several workers, FnApiRunner takes what one gives away from the input of all
    Setting("forced splits of score", 0, 1, True),
    Setting("bundle_repeat=2, forced splits of score", 2, 1, True),
]


def part(torture):
    with torture.work("repeat") as work:
        pipeline = inputs.write_pipeline(work)
        random = torture.random("repeat")
        folder = inputs.write_tars(work / "in", [random.randrange(60) for _ in range(150)], random)
        alone = torture.sluice.run(pipeline, [folder], work / "alone")
        if alone.code:
            torture.claims.add("sluice run scores the input", f"exit code {alone.code}: {alone.reason()}", False)
            return
        expected = rows.rows(work / "alone")
        say(f"{rows.count(expected)} rows of {len(expected)} shards")
        with torture.pool(work) as pool:
            for number, setting in enumerate(SETTINGS):
                output, counts = work / f"out-{number}", work / f"counts-{number}"
                with service(torture.own_port + 1, setting, counts) as endpoint:
                    ended = torture.sluice.submit(pipeline, [folder], output, endpoint, pool.environment).wait()
                if ended.code:
                    claim(torture, setting, f"exit code {ended.code}: {ended.reason()}", False)
                    continue
                fault = torture.fault(output, expected)
                done = json.loads(counts.read_text().splitlines()[-1])
                figure = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in done.items())
                claim(torture, setting, fault or figure, fault is None and happened(setting, done))


def claim(torture, setting, figure, held):
    torture.claims.add(f"FnApiRunner, {setting.what}: rows identical to sluice run, verified", figure, held)


def happened(setting, done):
    """Whether the runner did what was asked of it."""
    repeated = done["repetitions"] == setting.repeat * done["bundles"]
    split = (done["splits"] > 0 and done["given_away"] > 0) == setting.split
    return done["bundles"] > 0 and done["workers"] == setting.workers and repeated and split


@contextlib.contextmanager
def service(port, setting, counts):
    """A job service with these settings; gives its endpoint."""
    command = [sys.executable, Path(__file__).parent / "repeating_service.py", "--port", port, "--counts", counts]
    command += ["--repeat", setting.repeat, "--workers", setting.workers]
    if setting.split:
        command += ["--split", "score"]
    with counts.with_suffix(".log").open("wb") as log:
        child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=log)
        try:
            if child.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the job service ended at its start: {log.name}")
            yield f"localhost:{port}"
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
