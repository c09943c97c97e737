"""What all parts of the torture share: the binary, the runners, a seed, a work folder, and the claims."""

import contextlib
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import rows
from claims import Claims, say
from commands import Pool, Sluice
from runners import Runners

# The ports from this one on: 50 of the runners, 10 of the torture itself. Its pools are at the first of these.
FIRST_PORT = 24000
RUNNER_PORTS = 50


@dataclass
class Torture:
    """The arguments, and what the parts use."""

    sluice: Sluice
    seed: int
    kills: int
    cost_shards: int
    cost_rounds: int
    memory_shards: int
    claims: Claims = field(default_factory=Claims)

    def __post_init__(self):
        first_port = int(os.environ.get("BEAM_RUNNERS_PORT", FIRST_PORT))
        self.runners = Runners(first_port)
        self.own_port = first_port + RUNNER_PORTS

    def random(self, part):
        """Random numbers of one part: the same for the same seed, whatever other parts run."""
        return random.Random(f"{self.seed} {part}")

    @contextlib.contextmanager
    def work(self, part):
        """A folder for one part. It is kept if one of the part's claims did not hold."""
        # not in /tmp, which may be in memory
        work = Path(tempfile.mkdtemp(prefix=f"sluice-torture-{part}-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        failed = self.claims.failed()
        try:
            yield work
        finally:
            if self.claims.failed() == failed:
                # after a signal, a worker may still write
                shutil.rmtree(work, ignore_errors=True)
            else:
                say(f"kept {work}")

    def pool(self, work):
        """A pool of workers. The log is in the work folder."""
        return Pool(self.sluice, self.own_port, work / "pool.log")

    def fault(self, output, expected):
        """What is wrong with a finished output, in words; None if it is verified, and has the expected rows."""
        verified = self.sluice.verify(output)
        if verified.code:
            return f"verify exits with {verified.code}: {verified.reason()}"
        return rows.difference(rows.rows(output), expected)
