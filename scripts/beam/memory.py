"""Part `memory`: an idle worker, and a worker through a job of very many shards.

- The worker is a pool's, so that it can be measured before, during and after its job. The model has a few kilobytes, so
  all memory counts as the worker's own.
- Resident memory includes the pages of the binary and of ONNX Runtime that are in use.
"""

import time
from statistics import median

import inputs
import processes
from claims import say

IDLE_LIMIT_MB = 30
# Shares of the shards between which memory is compared.
FROM, TO = 0.1, 0.9
# What a worker may hold of each shard that it has scored: its report.
SCORE_KB = 0.5
# What finishing may hold of each shard: its report, and its entries in the listing of the output and in the manifest.
FINISH_KB = 5
SAMPLE_SECONDS = 0.5


def part(torture):
    count = torture.memory_shards
    with torture.work("memory") as work:
        pipeline = inputs.write_pipeline(work)
        folder = inputs.write_tiny_tars(work / "in", count, torture.random("memory"))
        with torture.runners.running("flink") as endpoint, torture.pool(work) as pool:
            worker = processes.find(pool.pid)
            # until the memory of its start is in use
            time.sleep(1)
            idle = worker.rss_mb()
            torture.claims.add(f"an idle worker: under {IDLE_LIMIT_MB} MB", f"{idle:.1f} MB", idle < IDLE_LIMIT_MB)
            output = work / "out"
            submitted = torture.sluice.submit(pipeline, [folder], output, endpoint, pool.environment)
            samples = sampled(worker, output, count, submitted)
            ended = submitted.wait(limit=3600)
            after = worker.rss_mb() if worker.is_alive() else None
        claim = f"{count} shards through Flink: DONE, verified"
        if ended.code or after is None:
            torture.claims.add(claim, f"exit code {ended.code}: {ended.reason()}", False)
            return
        verified = torture.sluice.verify(output)
        figure = f"{ended.seconds:.0f} s, {count / ended.seconds:.0f} shards/s"
        torture.claims.add(claim, figure if verified.code == 0 else verified.reason(), verified.code == 0)
        early = median(rss for share, rss in samples if share and share <= FROM)
        late = median(rss for share, rss in samples if TO <= share < 1)
        growth = (late - early) * 1000 / count
        figure = f"{early:.0f} MB before {FROM:.0%}, {late:.0f} MB after {TO:.0%}: {growth:.2f} kB for each shard"
        claim = f"memory of the worker while it scores: at most {SCORE_KB} kB more for each shard"
        torture.claims.add(claim, figure, growth <= SCORE_KB)
        most = max(rss for _, rss in samples)
        figure = f"{most:.0f} MB at most: {(most - late) * 1000 / count:.1f} kB for each; {after:.0f} MB after the job"
        claim = f"memory of the worker while it finishes: at most {FINISH_KB} kB more for each shard"
        torture.claims.add(claim, figure, most - late <= FINISH_KB * count / 1000)


def sampled(worker, output, count, submitted):
    """(share of the shards that are stored, resident MB) over the time of the job."""
    samples = [(0.0, worker.rss_mb() or 0.0)]
    said = 0
    while submitted.is_running():
        rss = worker.rss_mb()
        if rss is None:
            break
        share = stored(output) / count
        samples.append((share, rss))
        if share * 10 >= said + 1:
            said = int(share * 10)
            say(f"{share:.0%} of the shards, {rss:.0f} MB, {submitted.seconds():.0f} s")
        time.sleep(SAMPLE_SECONDS)
    return samples


def stored(output):
    """The number of parts."""
    try:
        return sum(1 for _ in (output / "predictions").iterdir())
    except FileNotFoundError:
        return 0
