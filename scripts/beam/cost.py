"""Part `cost`: what a runner costs, against `sluice run`, and against Beam's RunInference on the same runner.

- A round has one run of each setup. Every other round has them in the opposite order. Ratios are medians of the ratios
  within a round.
- A run begins when its first worker records it in the output, for `sluice run` as for a job. The time before that is
  start-up: of the program, the job, and its workers. The time after it counts, up to the end of the command: loading
  the model, scoring, finishing, and the end of the job.
- RunInference reports the time from the first image read to the last score, and so excludes loading and Beam's start.
  For sluice on the runner, the time is from the beginning to the end of its run, which includes loading.
"""

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy
import pyarrow.dataset

import inputs
from claims import say

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"
sys.path.insert(0, str(BENCH))

import dataset  # noqa: E402 (found through the line above)

# Small enough for several runs of 20,000 images, large enough for decoding to outweigh the shards' fixed costs.
PHOTOS = dataset.Kind(640, 480)
IMAGES_PER_SHARD = 100
DISTINCT_SHARDS = 4

ALONE, FLINK, PRISM = "sluice run", "flink", "prism"
# Time over that of `sluice run`.
LIMIT = 1.05

SLUICE = "sluice"
# RunInference, by its number of worker processes.
PEERS = {"RunInference in 1 worker": 1, "RunInference in 2 workers": 2}
PEER_IMAGES = 960
PEER_IMAGES_PER_SHARD = 32
PEER_RATIO = 1.5
TOLERANCE = 1e-3


def part(torture):
    with torture.work("cost") as work:
        to_sluice_run(torture, work)
    with torture.work("peer") as work:
        to_run_inference(torture, work)


def by_turns(setups, rounds):
    """The setups of all rounds, in the order in which they run: (round, setup)."""
    for number in range(rounds):
        for setup in setups if number % 2 == 0 else setups[::-1]:
            yield number, setup


# --- Against `sluice run` ------------------------------------------------------------------------


def to_sluice_run(torture, work):
    pipeline = inputs.write_pipeline(work)
    folder = write_photos(work / "in", torture.cost_shards)
    images = torture.cost_shards * IMAGES_PER_SHARD
    times = {setup: [] for setup in (ALONE, FLINK, PRISM)}
    with torture.runners.running(FLINK) as flink, torture.runners.running(PRISM) as prism:
        endpoints = {FLINK: flink, PRISM: prism}
        for endpoint in endpoints.values():
            warm_up(torture, pipeline, folder, endpoint, work)
        for number, setup in by_turns([ALONE, FLINK, PRISM], torture.cost_rounds):
            output = work / f"{setup.replace(' ', '-')}-{number}"
            started = time.time()
            if setup == ALONE:
                ended = torture.sluice.run(pipeline, [folder], output)
            else:
                ended = torture.sluice.submit(pipeline, [folder], output, endpoints[setup]).wait()
            if ended.code:
                figure = f"exit code {ended.code}: {ended.reason()}"
                torture.claims.add(f"{setup} scores {images} images", figure, False)
                return
            begin, _ = times_of_run(output)
            times[setup].append((begin - started, ended.seconds - (begin - started)))
            say(f"{setup}: start-up {times[setup][-1][0]:.2f} s, then {times[setup][-1][1]:.2f} s")
    alone = [after for _, after in times[ALONE]]
    for setup in (FLINK, PRISM):
        ratios = [after / alone[number] for number, (_, after) in enumerate(times[setup])]
        start_up = median(before for before, _ in times[setup])
        figure = f"x {median(ratios):.3f} of {median(alone):.1f} s; start-up {start_up:.1f} s"
        figure += f", of sluice run {median(before for before, _ in times[ALONE]):.1f} s"
        figure += f"; rounds {', '.join(f'{ratio:.3f}' for ratio in ratios)}"
        claim = f"{torture.cost_shards} shards of {IMAGES_PER_SHARD} images, {setup} with PROCESS: at most x {LIMIT}"
        torture.claims.add(claim, figure, median(ratios) <= LIMIT)


def write_photos(folder, shards):
    """Tars of photos, which are links to a few; returns their folder."""
    folder.mkdir()
    paths = dataset.make(ROOT / ".deps" / "bench", DISTINCT_SHARDS * IMAGES_PER_SHARD, PHOTOS)
    for shard in range(shards):
        tar = folder / f"{shard:05}.tar"
        if shard < DISTINCT_SHARDS:
            some = paths[shard * IMAGES_PER_SHARD :][:IMAGES_PER_SHARD]
            tar.write_bytes(inputs.tar([(path.name, path.read_bytes()) for path in some]))
        else:
            os.link(folder / f"{shard % DISTINCT_SHARDS:05}.tar", tar)
    return folder


def warm_up(torture, pipeline, folder, endpoint, work):
    """A small job: the first one of a runner is slower."""
    output = work / f"warm-up-{endpoint.rpartition(':')[2]}"
    ended = torture.sluice.submit(pipeline, [folder / "00000.tar"], output, endpoint).wait()
    if ended.code:
        raise RuntimeError(f"a job failed: {ended.text}")


def times_of_run(output):
    """(begin, end) of a finished run, in seconds since 1970."""
    manifest = json.loads((output / "_manifest.json").read_text())
    return [datetime.datetime.fromisoformat(manifest[name]).timestamp() for name in ("started_at", "finished_at")]


# --- Against RunInference ------------------------------------------------------------------------


def to_run_inference(torture, work):
    pipeline = ROOT / "pipelines" / "safety.toml"
    images = dataset.make(ROOT / ".deps" / "bench", PEER_IMAGES)[0].parent
    rates = {setup: [] for setup in (SLUICE, *PEERS)}
    scores = {}
    with torture.runners.running(FLINK) as endpoint, python_pool(torture, work) as pool:

        def measure(setup):
            if setup == SLUICE:
                output = work / f"sluice-{len(rates[SLUICE])}"
                seconds, scores[setup] = sluice(torture, pipeline, images, endpoint, output)
            else:
                seconds, scores[setup] = run_inference(pipeline, images, endpoint, pool, PEERS[setup], work)
            rates[setup].append(PEER_IMAGES / seconds)
            say(f"{setup}: {rates[setup][-1]:.1f} images/s")

        for setup in rates:
            measure(setup)
        # the rounds after the first have the faster peer only
        best = max(PEERS, key=lambda peer: rates[peer][0])
        for _, setup in by_turns([best, SLUICE], torture.cost_rounds - 1):
            measure(setup)
    ratio = median(one / other for one, other in zip(rates[SLUICE], rates[best], strict=True))
    figure = f"x {ratio:.2f}: " + ", ".join(f"{setup} {median(found):.1f} images/s" for setup, found in rates.items())
    claim = f"flink, {PEER_IMAGES} photos of {dataset.PHOTO.width}x{dataset.PHOTO.height}, open-nsfw: at least"
    torture.claims.add(f"{claim} x {PEER_RATIO} of RunInference", figure, ratio >= PEER_RATIO)
    expected = scores.pop(SLUICE)
    different = max(float(numpy.abs(found - expected).max()) for found in scores.values())
    tops = sum(int((found.argmax(1) != expected.argmax(1)).sum()) for found in scores.values())
    figure = f"largest difference {different:.1e}, {tops} of {len(expected)} top classes differ"
    claim = f"scores of RunInference and sluice agree within {TOLERANCE:g}"
    torture.claims.add(claim, figure, different <= TOLERANCE and tops == 0)


def sluice(torture, pipeline, images, endpoint, output):
    """(seconds, scores by file name) of a job of sluice."""
    settings = [f"input.files_per_shard={PEER_IMAGES_PER_SHARD}", "output.scores=all"]
    settings = [word for setting in settings for word in ("--set", setting)]
    ended = torture.sluice.submit(pipeline, [images], output, endpoint, "process", *settings).wait()
    if ended.code:
        raise RuntimeError(f"a job failed: {ended.text}")
    begin, end = times_of_run(output)
    return end - begin, scores_of(output)


def scores_of(output):
    """Scores by file name."""
    table = pyarrow.dataset.dataset(output / "predictions", format="parquet").to_table(columns=["image_id", "scores"])
    rows = sorted(table.to_pylist(), key=lambda row: Path(row["image_id"]).name)
    return numpy.asarray([row["scores"] for row in rows], numpy.float32)


def run_inference(pipeline, images, endpoint, pool, workers, work):
    """(seconds, scores by file name) of the peer."""
    out = work / "peer.npz"
    command = [sys.executable, BENCH / "peer_beam.py", "--pipeline", pipeline, "--images", images, "--out", out]
    command += ["--workers", workers, "--job-endpoint", endpoint, "--pool", pool]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"RunInference failed: {done.stderr}")
    left = numpy.load(out)
    return float(left["seconds"]), left["scores"][numpy.argsort(left["names"])]


@contextlib.contextmanager
def python_pool(torture, work):
    """Beam's worker pool, which starts a Python process for each worker; gives its address."""
    port = torture.own_port + 2
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    # workers are started as `python`, and import the peer's module
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(BENCH)}
    with (work / "python-pool.log").open("wb") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield f"localhost:{port}"
        finally:
            child.terminate()
            child.wait()
