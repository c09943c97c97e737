#!/usr/bin/env python3
"""Measure sluice and its peers on the same images in one run; scripts/bench.sh calls this.

- Every peer is a process of its own. A round runs sluice before, between and after the peers and takes
  the mean, so that a change of the machine's speed affects all of them.
- images/s are from the first image read to the last score, without loading the model; each peer
  reports them itself. Wall s and peak MB are of the whole process (of the largest one if there are
  several).
- The ceiling is 1 / (1/inference + 1/decode), both alone on all cores, from the Rust stages bench,
  right before and after each run of sluice.
- Decoding on one thread alternates between Rust and Pillow, in turns of a few seconds.
- Rates are medians over the rounds; a ratio is the median of the ratios within each round, run of
  sluice, or turn.
- All scores are compared with the Python loop's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import numpy as np
import pyarrow.dataset

import dataset
import metered

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOLERANCE = 1e-3

SLUICE = "sluice"
LOOP = "Python, one loop"
THREADS = "Python, decode threads"
BEAM = "Beam RunInference, in process"
BEAM_WORKERS = "Beam RunInference, worker processes"
LOOPS, BEAMS = (LOOP, THREADS), (BEAM, BEAM_WORKERS)


@dataclass
class Result:
    """One setup in one round."""

    images_per_second: float
    wall_seconds: float
    peak_rss_mb: float
    scores: np.ndarray = field(repr=False)  # by file name

    @staticmethod
    def mean(results):
        """The mean of several runs, whose scores must be equal."""
        scores = results[0].scores
        if not all(np.array_equal(result.scores, scores) for result in results):
            sys.exit("two runs of sluice gave different scores")
        return Result(
            mean(result.images_per_second for result in results),
            mean(result.wall_seconds for result in results),
            max(result.peak_rss_mb for result in results),
            scores,
        )


def measure_peer(command, args, images, work):
    out = work / "peer.npz"
    usage = metered.run([*command, "--pipeline", args.pipeline, "--images", images, "--out", out])
    left = np.load(out)
    order = np.argsort(left["names"])
    rate = len(order) / float(left["seconds"])
    return Result(rate, usage.wall_seconds, usage.peak_rss_mb, left["scores"][order])


def measure_sluice(args, images, work):
    output = work / "sluice"
    shutil.rmtree(output, ignore_errors=True)
    usage, summary = metered.run_sluice(args.sluice, args.pipeline, [images], output, ["output.scores=all"])
    table = pyarrow.dataset.dataset(output / "predictions", format="parquet").to_table()
    rows = sorted(
        table.select(["image_id", "scores"]).to_pylist(), key=lambda row: Path(row["image_id"]).name
    )
    scores = np.asarray([row["scores"] for row in rows], np.float32)
    return Result(summary["images_per_second"], usage.wall_seconds, usage.peak_rss_mb, scores)


def peer_setups(args, images, work):
    """The name of each peer, and the function that measures it."""
    loop = [sys.executable, HERE / "peer_loop.py"]
    beam = [args.beam_python, HERE / "peer_beam.py"]
    commands = {
        LOOP: loop,
        THREADS: [*loop, "--decode-threads", os.cpu_count()],
        BEAM: beam,
        BEAM_WORKERS: [*beam, "--workers", max(2, os.cpu_count() // 2)],
    }
    for name, command in commands.items():
        yield name, lambda command=command: measure_peer(command, args, images, work)


@dataclass
class Visit:
    """One run of sluice, with decoding and inference alone right before and after it."""

    result: Result
    stages: dict[str, float]  # images/s of decoding and inference alone, on all cores

    def ceiling(self):
        return 1 / (1 / self.stages["inference"] + 1 / self.stages["decode_all_threads"])


@dataclass
class Round:
    """All setups and stages."""

    setups: dict[str, Result]
    visits: list[Visit]
    turns: list[dict[str, float]]  # images/s of decoding on one thread: Rust's figures and Pillow's


STAGES = ("inference", "decode_all_threads")
RUST_TURN = ("decode_one_thread", "decode_one_thread_scaled")
PILLOW_TURN = ("resize",)
PILLOW_ONCE = ("decode", "resize_draft", "resize_384")


def rates(command, figures, seconds, images, args):
    """Images/s by figure. The command prints them as one JSON object in its last line."""
    command = [*command, "--pipeline", args.pipeline, "--images", images, "--seconds", seconds]
    printed = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(printed.stdout.strip().splitlines()[-1])
    return {figure: found[figure] for figure in figures}


def rust_rates(figures, seconds, images, args):
    chosen = [word for figure in figures for word in ("--figures", figure)]
    return rates([*args.stages.split(), "--rounds", 1, *chosen], figures, seconds, images, args)


def pillow_rates(figures, seconds, images, args):
    return rates(
        [sys.executable, HERE / "pillow_decode.py", "--figures", *figures], figures, seconds, images, args
    )


def measure_round(number, args, images, work):
    def say(what):
        print(f"round {number + 1} of {args.rounds}: {what}", file=sys.stderr)

    def visit():
        say("decoding and inference alone, and sluice")
        before = rust_rates(STAGES, 3, images, args)
        result = measure_sluice(args, images, work)
        after = rust_rates(STAGES, 3, images, args)
        return Visit(result, {figure: mean((before[figure], after[figure])) for figure in STAGES})

    peers, visits = {}, [visit()]
    for name, measure in peer_setups(args, images, work):
        say(name)
        peers[name] = measure()
        if name in (THREADS, BEAM_WORKERS):
            visits.append(visit())
    say("decoding on one thread")
    turns = [
        rust_rates(RUST_TURN, 1.5, images, args) | pillow_rates(PILLOW_TURN, 1.5, images, args)
        for _ in range(args.turns)
    ]
    turns[-1] |= pillow_rates(PILLOW_ONCE, 1.5, images, args)
    sluice = Result.mean([visit.result for visit in visits])
    return Round({SLUICE: sluice} | peers, visits, turns)


def best(measured, names):
    return max(measured[name].images_per_second for name in names)


def agreement(scores, expected):
    """(largest difference, number of images whose top class differs)"""
    if scores.shape != expected.shape:
        return float("inf"), len(expected)
    return float(np.abs(scores - expected).max()), int((scores.argmax(1) != expected.argmax(1)).sum())


def figures(rounds):
    """All figures of the tables, from the rounds."""

    def ratio(of_round):
        return median(of_round(one) for one in rounds)

    turns = [turn for one in rounds for turn in one.turns]
    visits = [visit for one in rounds for visit in one.visits]
    ceiling = median(visit.ceiling() for visit in visits)

    def one_thread(figure):
        return median(turn[figure] for turn in turns if figure in turn)

    setups = {}
    for name in rounds[0].setups:  # the lambdas are called before `name` changes
        results = [one.setups[name] for one in rounds]
        expected = rounds[0].setups[LOOP].scores
        differences, other_tops = zip(
            *(agreement(result.scores, expected) for result in results), strict=True
        )
        setups[name] = {
            "images_per_second": median(result.images_per_second for result in results),
            "images_per_second_by_round": [result.images_per_second for result in results],
            "wall_seconds": median(result.wall_seconds for result in results),
            "peak_rss_mb": max(result.peak_rss_mb for result in results),
            "to_beam": ratio(lambda one: one.setups[name].images_per_second / best(one.setups, BEAMS)),
            "to_loop": ratio(lambda one: one.setups[name].images_per_second / best(one.setups, LOOPS)),
            "to_ceiling": median(result.images_per_second for result in results) / ceiling,
            "max_difference": float(np.max(differences)),
            "other_top_class": max(other_tops),
        }
    # each run of sluice has its own ceiling, measured around it
    to_ceilings = [visit.result.images_per_second / visit.ceiling() for visit in visits]
    setups[SLUICE] |= {"to_ceiling": median(to_ceilings), "to_ceiling_by_run": to_ceilings}
    return {
        "setups": setups,
        "ceiling": ceiling,
        "stages": {figure: median(visit.stages[figure] for visit in visits) for figure in STAGES}
        | {figure: one_thread(figure) for figure in RUST_TURN},
        "pillow": {figure: one_thread(figure) for figure in PILLOW_TURN + PILLOW_ONCE},
        "decode_to_pillow": median(turn["decode_one_thread"] / turn["resize"] for turn in turns),
        "scaled_decode_to_pillow": median(turn["decode_one_thread_scaled"] / turn["resize"] for turn in turns),
    }


def demands(found):
    """(demand, figure, met)"""
    sluice = found["setups"][SLUICE]
    difference = float(np.max([setup["max_difference"] for setup in found["setups"].values()]))
    other_top = max(setup["other_top_class"] for setup in found["setups"].values())
    for demand, figure, least in (
        ("at least 1.5x the better Beam", sluice["to_beam"], 1.5),
        ("no slower than the better Python loop", sluice["to_loop"], 1.0),
        ("at least 95% of the ceiling", sluice["to_ceiling"], 0.95),
        ("decode + resize per thread at least 2.0x Pillow", found["decode_to_pillow"], 2.0),
        ("with scaled_decode at least 3.0x Pillow", found["scaled_decode_to_pillow"], 3.0),
    ):
        yield demand, f"{figure:.2f}", figure >= least
    agree = difference < TOLERANCE and other_top == 0
    yield "all scores equal within 1e-3, top class identical", f"{difference:.1e}, {other_top} differ", agree


def report(found, images, rounds):
    """The figures as Markdown."""
    mean_kb = sum(path.stat().st_size for path in images) / len(images) / 1000
    rows = [
        [
            name,
            f"{setup['images_per_second']:.1f}",
            f"{setup['wall_seconds']:.1f}",
            f"{setup['peak_rss_mb']:.0f}",
            f"{setup['to_beam']:.2f}",
            f"{setup['to_loop']:.2f}",
            f"{setup['to_ceiling']:.0%}",
            f"{setup['max_difference']:.0e}",
        ]
        for name, setup in found["setups"].items()
    ]
    stages, pillow = found["stages"], found["pillow"]
    alone = [
        ["inference, all cores", f"{stages['inference']:.1f}", ""],
        ["decode, all cores", f"{stages['decode_all_threads']:.1f}", ""],
        ["the ceiling of both", f"{found['ceiling']:.1f}", ""],
        ["decode, one thread", f"{stages['decode_one_thread']:.1f}", f"{found['decode_to_pillow']:.2f}"],
        [
            "decode, one thread, scaled_decode",
            f"{stages['decode_one_thread_scaled']:.1f}",
            f"{found['scaled_decode_to_pillow']:.2f}",
        ],
        ["Pillow, decode and resize", f"{pillow['resize']:.1f}", "1"],
        ["Pillow, decode only", f"{pillow['decode']:.1f}", ""],
        ["Pillow, decode with draft, and resize", f"{pillow['resize_draft']:.1f}", ""],
        ["Pillow, decode and resize to 384x384", f"{pillow['resize_384']:.1f}", ""],
    ]
    parts = (
        f"{len(images)} images of {mean_kb:.0f} kB, {rounds} rounds, {os.cpu_count()} cores",
        metered.markdown(
            ["setup", "images/s", "wall s", "peak MB", "x Beam", "x loop", "of ceiling", "max diff"], rows
        ),
        metered.markdown(["alone", "images/s", "x Pillow"], alone),
        metered.markdown(
            ["demand", "figure", ""],
            [[demand, figure, "met" if met else "NOT MET"] for demand, figure, met in demands(found)],
        ),
    )
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sluice", required=True, help="the release binary")
    parser.add_argument("--pipeline", type=Path, default=ROOT / "pipelines" / "safety.toml")
    parser.add_argument("--images", type=int, default=640, help="number of images to score")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=4, help="turns of decoding on one thread in each round")
    parser.add_argument("--beam-python", default=ROOT / ".deps/beam/python/bin/python")
    parser.add_argument("--stages", default="cargo bench --quiet --locked --bench stages --", help="command")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench.json")
    args = parser.parse_args()
    args.pipeline = args.pipeline.resolve()

    images = dataset.make(ROOT / ".deps" / "bench", args.images)
    for path in images:
        path.read_bytes()  # into the page cache, so that all peers find it warm
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as work:
        rounds = [measure_round(number, args, images[0].parent, Path(work)) for number in range(args.rounds)]
    found = figures(rounds)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    met = {demand: {"figure": figure, "met": met} for demand, figure, met in demands(found)}
    args.json.write_text(json.dumps({"images": len(images), **found, "demands": met}, indent=2) + "\n")
    print(report(found, images, args.rounds))
    if not all(demand["met"] for demand in met.values()):
        sys.exit("a demand is not met")


if __name__ == "__main__":
    main()
