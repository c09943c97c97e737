#!/usr/bin/env python3
"""Check and measure the GPU engines on this host; scripts/gpu-check.sh calls this.

| part        | what it does                                                                      |
| ----------- | --------------------------------------------------------------------------------- |
| conformance | every engine through the suite of the trait `Engine`; its scores against ONNX     |
|             | Runtime's on the CPU: EfficientNetV2-S at batches of 1, 10 and 32, fp32 and fp16  |
| photos      | the same for EfficientNet-Lite0 on all photos; padded batches against full ones,  |
|             | bit by bit                                                                        |
| bench       | `sluice bench`, every engine; the original protocol against a Python loop over    |
|             | TensorRT                                                                          |
| alone       | `sluice run` on TFRecord shards of 384x384 JPEGs against the engine alone; the    |
|             | GPU's idle share                                                                  |
| decoding    | `sluice run` on TFRecord shards of 1280x960 JPEGs against PyTorch's DataLoader    |
| devices     | two GPUs against one, if the host has two                                         |
| resume      | a run that is killed twice and resumed, against an uninterrupted one, bit by bit  |
| commit      | 1,000 shards of 20 images against 10 of 2,000; the time for which the GPU waits   |
|             | for any reason, and the time that a run takes to finish                           |
| faults      | wrong GPU, wrong TensorRT, damaged engine, missing library                        |
| memory      | a batch that 80 GB cannot hold, and the one that the message suggests             |

Each demand is a line of the last table. The JSON has the demands and figures of each part, with date and
host; parts that are not run stay unchanged in it.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import dataset
import metered

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import shards  # noqa: E402 (found through the line above)

PARTS = ("conformance", "photos", "bench", "alone", "decoding", "devices", "resume", "commit", "faults", "memory")
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
# Two medians of the same measurement differ by this much from run to run.
NOISE = 1.02
# Repetitions of compared runs, which alternate; the median counts.
TURNS = 3
# settings by name
ENGINES = {
    "tensorrt": ("engine.kind=tensorrt",),
    "onnxruntime-tensorrt": ("engine.kind=onnxruntime", "engine.provider=tensorrt-rtx"),
    "onnxruntime-cuda": ("engine.kind=onnxruntime", "engine.provider=cuda"),
}
CPU = ("engine.kind=onnxruntime", "engine.provider=cpu")

PIPELINE = """
name = "gpu-check"
[input]
uri = "unused"
[preprocess]
resize = {{ width = {side}, height = {side}, fit = "stretch", filter = "bilinear" }}
scale = 0.00392156862745098
layout = "nhwc"
[model]
path = "{model}"
[engine]
kind = "tensorrt"
batch_size = 128
[output]
uri = "unused"
scores = "{scores}"
"""

# Holds a GPU's memory beyond 80 GB until its input ends.
HOLDER = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(max(free - 79 * 2**30, 0), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""

# Images of the whole runs, distinct and in all: enough for twenty seconds at the GPU's speed.
DISTINCT, SHARDS = 512, 16
SMALL, LARGE = dataset.Kind(384, 384), dataset.Kind(1280, 960)


def rounded(ratios):
    return ", ".join(f"{ratio:.3f}" for ratio in ratios)


class Check:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.figures, self.demands = {}, []

    # --- Tools ---------------------------------------------------------------------------------

    def demand(self, what, figure, met):
        print(f"{'met    ' if met else 'NOT MET'}  {what}: {figure}", file=sys.stderr, flush=True)
        self.demands.append({"demand": what, "figure": str(figure), "met": bool(met)})

    def sluice(self, *words, environment=None):
        command = [str(word) for word in (self.args.sluice, *words)]
        environment = {**os.environ, "SLUICE_CACHE_DIR": str(self.work / "cache"), **(environment or {})}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)

    def run(self, pipeline, inputs, output, settings, *more):
        """`sluice run` that must succeed; returns its summary."""
        output = self.work / output
        shutil.rmtree(output, ignore_errors=True)
        words = ["run", pipeline, "--output", output, *more]
        words += [word for uri in inputs for word in ("--input", uri)]
        words += [word for setting in settings for word in ("--set", setting)]
        done = self.sluice(*words)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))} exited with {done.returncode}:\n{done.stderr[-2000:]}")
        summary = json.loads((output / "_manifest.json").read_text())["summary"]
        finish_ms = re.search(r"finish_ms=(\d+)", done.stderr)
        return {**summary, "finish_seconds": int(finish_ms[1]) / 1000}

    def diff(self, a, b, *more):
        """(exit code, figures) of `sluice diff`."""
        done = self.sluice("diff", self.work / a, self.work / b, *more)
        found = dict(re.findall(r"^(\w[\w ]*?)\s{2,}(\S+)$", done.stdout, re.MULTILINE))
        return done.returncode, found or {"error": done.stderr[-500:]}

    def pipeline(self, name, model, side, scores="all"):
        path = self.work / f"{name}.toml"
        path.write_text(PIPELINE.format(model=model, side=side, scores=scores))
        return path

    def python(self, script, *words):
        subprocess.run([sys.executable, script, *map(str, words)], check=True, stdout=sys.stderr)

    def models(self):
        self.v2s = {precision: self.work / f"v2s-{precision}.onnx" for precision in TOLERANCE}
        for precision, path in self.v2s.items():
            self.python(ROOT / "scripts/models/efficientnet_v2_s.py", path, "--precision", precision)
        lite0 = ROOT / ".deps/models/efficientnet-lite0.onnx"
        self.lite0 = {"fp32": lite0, "fp16": self.work / "lite0-fp16.onnx"}
        self.python(ROOT / "scripts/models/to_fp16.py", lite0, self.lite0["fp16"])

    # --- Conformance ---------------------------------------------------------------------------

    def conformance(self):
        self.suite()
        for precision, model in self.v2s.items():
            rows = self.bench_rows(f"conformance-{precision}", model, "1,10,32", 3, "--check", "--setups", ",".join(ENGINES))
            for row in rows:
                what = f"EfficientNetV2-S {precision}, {row['setup']}, batch {row['batch_size']}: within {TOLERANCE[precision]} of the CPU"
                difference = row.get("max_difference")  # also None if a score is not a number
                met = difference is not None and difference <= TOLERANCE[precision]
                self.demand(what, row.get("reason", difference), met)

    def suite(self):
        what = "every engine keeps the contract of the trait Engine"
        if self.args.engine_tests:
            command = [self.args.engine_tests]
        elif shutil.which("cargo"):
            command = ["cargo", "test", "--locked", "--test", "gpu_engines", "--"]
        else:
            build = "cargo test --locked --test gpu_engines --no-run"
            self.demand(what, f"not run: no cargo here, and no --engine-tests with what `{build}` builds", False)
            return
        # one at a time, since each test takes GPU memory for its engines
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [*command, "--test-threads", "1"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        print(done.stdout, flush=True)
        result = re.search(r"test result: .*?;.*? failed", done.stdout)
        self.demand(what, result[0] if result else done.stderr[-1500:], done.returncode == 0)

    def photos(self):
        photos = [ROOT / "fixtures/photos"]
        pipeline = ROOT / "pipelines/photos.toml"
        self.run(pipeline, photos, "photos-cpu", (*CPU, "output.scores=all"))
        for precision, model in self.lite0.items():
            for name, settings in ENGINES.items():
                output = f"photos-{name}-{precision}"
                what = f"EfficientNet-Lite0 {precision}, {name}: photos as on the CPU"
                try:
                    self.run(pipeline, photos, output, (*settings, f"model.path={model}", "output.scores=all"))
                    code, found = self.diff("photos-cpu", output, "--tolerance", TOLERANCE[precision])
                except RuntimeError as error:
                    code, found = 1, str(error)
                self.demand(what, found, code == 0)
        self.padding()

    def padding(self):
        """Compare the rows of partly filled batches with those of full ones."""
        photos = sorted(path for path in (ROOT / "fixtures/photos").iterdir() if path.suffix in dataset.SUFFIXES)
        tar = self.work / "photos.tar"
        tar.write_bytes(shards.webdataset(photos, False))
        pipeline = ROOT / "pipelines/photos.toml"
        for name, settings in ENGINES.items():
            settings = (*settings, "output.scores=all", "engine.batch_size=14")
            what = f"{name}: any fill of a batch gives the same bits"
            try:
                self.run(pipeline, [tar], f"full-{name}", settings)
                found = {}
                for rows in (1, 5, 13):
                    self.run(pipeline, [tar], f"part-{name}", settings, "--limit", rows)
                    code, found = self.diff(f"full-{name}", f"part-{name}", "--common")
                    if code or found.get("records in both") != str(rows):
                        break
            except RuntimeError as error:
                code, found = 1, str(error)
            self.demand(what, found, code == 0)

    # --- Bench ---------------------------------------------------------------------------------

    def bench_rows(self, name, model, batches, iterations, *more):
        path = self.work / f"{name}.json"
        done = self.sluice("bench", "--onnx", model, "--batch", batches, "--iterations", iterations, "--json", path, *more)
        print(done.stdout, flush=True)
        if done.returncode:
            raise RuntimeError(f"bench exited with {done.returncode}: {done.stderr[-2000:]}")
        rows = json.loads(path.read_text())
        self.figures[name] = rows
        return rows

    def bench(self):
        found = {}
        for precision, model in self.v2s.items():
            rows = self.bench_rows(f"bench-{precision}", model, "10,32,128", 100, "--setups", ",".join(ENGINES))
            rows = rows + self.bench_rows(f"bench-cpu-{precision}", model, "10,32", 3, "--setups", "onnxruntime-cpu")
            found |= {(precision, row["setup"], row["batch_size"]): row for row in rows}
        for key, row in found.items():
            filled = row.get("own") and row.get("original")
            self.demand(f"bench, {' '.join(map(str, key))}: a filled row", row.get("reason", "filled"), filled)

        def own_ms(precision, batch):
            return found[precision, "tensorrt", batch]["own"]["med_s"] * 1e3

        def overlapped(precision, batch):
            return found[precision, "tensorrt", batch]["overlapped_images_per_second"]

        for what, figure, limit in (
            ("fp16 batch 32, serial: at most 7.7 ms", own_ms("fp16", 32), 7.7),
            ("fp16 batch 10, serial: at most 3.1 ms", own_ms("fp16", 10), 3.1),
        ):
            self.demand(what, f"{figure:.2f}", figure <= limit)
        for what, figure, limit in (
            ("fp16 batch 32, overlapped: at least 4,550 images/s", overlapped("fp16", 32), 4550),
            ("fp16 batch 128, overlapped: at least 5,050 images/s", overlapped("fp16", 128), 5050),
            ("fp32 batch 32, overlapped: at least 3,400 images/s", overlapped("fp32", 32), 3400),
        ):
            self.demand(what, f"{figure:.0f}", figure >= limit)
        self.original_protocol()

    def original_protocol(self):
        """Float32 in pageable memory: `sluice bench` and a Python loop, alternating, on the same engine."""
        for precision, model in self.v2s.items():
            for batch in (10, 32):
                what = f"original protocol, {precision} batch {batch}: no slower than Python's TensorRT loop"
                engine = self.work / f"{precision}-{batch}.engine"
                built = self.sluice("build-engine", "--onnx", model, "--saveEngine", engine, "--shapes", f"input_1:{batch}x384x384x3")
                if built.returncode:
                    self.demand(what, built.stderr[-500:], False)
                    continue
                ours, peers = [], []
                for turn in range(TURNS):
                    name = f"original-{precision}-{batch}-{turn}"
                    row = self.bench_rows(name, model, str(batch), 50, "--setups", "tensorrt")[0]
                    done = subprocess.run(
                        [sys.executable, HERE / "peer_tensorrt.py", "--engine", engine, "--batch", str(batch), "--iterations", "50"],
                        capture_output=True,
                        text=True,
                    )
                    if done.returncode or not row.get("original"):
                        break
                    ours.append(row["original"]["med_s"] * 1e3)
                    peers.append(json.loads(done.stdout.splitlines()[-1])["med_s"] * 1e3)
                if len(peers) < TURNS:
                    self.demand(what, (row.get("reason") or done.stderr)[-500:], False)
                    continue
                mine, peer = statistics.median(ours), statistics.median(peers)
                self.figures[f"original protocol, {precision} batch {batch}, ms"] = {"sluice": ours, "Python": peers}
                self.demand(what, f"{mine:.2f} ms, Python {peer:.2f} ms ({peer / mine:.2f}x)", mine <= peer * NOISE)

    # --- Whole runs ----------------------------------------------------------------------------

    def tfrecords(self, kind, copies):
        """A folder of TFRecord shards with `copies` times DISTINCT images."""
        folder = self.work / f"tfrecord-{kind}"
        folder.mkdir(exist_ok=True)
        images = dataset.make(self.work, DISTINCT, kind)
        each = DISTINCT // SHARDS
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            data = pool.map(shards.tfrecord, [images[at : at + each] for at in range(0, DISTINCT, each)])
            for number, shard in enumerate(data):
                (folder / f"{number:03}-000.tfrecord").write_bytes(shard)
        for number in range(SHARDS):
            for copy in range(1, copies):
                link = folder / f"{number:03}-{copy:03}.tfrecord"
                link.unlink(missing_ok=True)
                os.link(folder / f"{number:03}-000.tfrecord", link)
        return folder

    def small_set(self):
        """A pipeline whose engine is already built, and images of the network's input size."""
        pipeline, images = self.pipeline("v2s", self.v2s["fp16"], 384, "top5"), self.tfrecords(SMALL, 100)
        self.run(pipeline, [images], "warm", (), "--limit", 512)
        return pipeline, images

    def alone(self):
        """Runs over images that keep the GPU busy, against the engine without a pipeline."""
        pipeline, images = self.small_set()
        summaries, shares = [], []
        for turn in range(TURNS):
            row = self.bench_rows(f"alone-{turn}", self.v2s["fp16"], "128", 100, "--setups", "tensorrt")[0]
            summaries.append(self.run(pipeline, [images], "small", ()))
            shares.append(summaries[-1]["images_per_second"] / row["overlapped_images_per_second"])
        self.figures |= {"runs 384x384": summaries, "shares of the engine alone": shares}
        share = statistics.median(shares)
        self.demand("384x384 JPEGs: at least 97% of the engine alone", f"{share:.3f} of {rounded(shares)}", share >= 0.97)
        idle = statistics.median(summary["gpu_idle_share"] for summary in summaries)
        self.demand("384x384: the GPU idles less than 3%", idle, idle < 0.03)

    def decoding(self):
        """Runs over images that keep the decoders busy, against PyTorch's DataLoader with Pillow."""
        pipeline, _ = self.small_set()
        images = self.tfrecords(LARGE, 24)
        ways = {
            "1280x960 JPEGs: at least 2.0x the DataLoader": ((), 2.0),
            "1280x960 JPEGs with scaled_decode: at least 3.0x": (("preprocess.scaled_decode=true",), 3.0),
        }
        ratios = {what: [] for what in ways}
        for _ in range(TURNS):
            peer = self.peer(LARGE)
            for what, (settings, _) in ways.items():
                summary = self.run(pipeline, [images], "large", settings)
                self.figures.setdefault(what, []).append(summary)
                ratios[what].append(summary["images_per_second"] / peer)
        for what, (_, least) in ways.items():
            ratio, summary = statistics.median(ratios[what]), self.figures[what][-1]
            figure = f"{ratio:.2f} of {rounded(ratios[what])} ({summary['images_per_second']:.0f} images/s); {summary['bottleneck']}"
            self.demand(what, figure, ratio >= least)

    def peer(self, kind):
        """images/s of PyTorch's DataLoader with Pillow, and the network in fp16 on the same GPU."""
        done = subprocess.run(
            [sys.executable, HERE / "peer_torch.py", "--images", self.work / f"{kind}-{DISTINCT}", "--copies", "24"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the DataLoader exited with {done.returncode}: {done.stderr[-2000:]}")
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        self.figures.setdefault("DataLoader", []).append(figures)
        return figures["images_per_second"]

    def devices(self):
        if self.sluice("doctor").stdout.count("compute capability") < 2:
            print("fewer than two GPUs: nothing to compare", file=sys.stderr)
            return
        pipeline, images = self.small_set()
        ratios = []
        for _ in range(TURNS):
            one = self.run(pipeline, [images], "one", ())
            both = self.run(pipeline, [images], "both", ("engine.devices=[0, 1]",))
            ratios.append(both["images_per_second"] / one["images_per_second"])
        self.figures["two GPUs"] = both
        ratio = statistics.median(ratios)
        self.demand("two GPUs: at least 1.9x one", f"{ratio:.2f} of {rounded(ratios)}; {both['bottleneck']}", ratio >= 1.9)

    def shards_of(self, each, images):
        """A folder of TFRecord shards of `each` images."""
        folder = self.work / f"commit-{each}"
        folder.mkdir(exist_ok=True)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            data = pool.map(shards.tfrecord, [images[at : at + each] for at in range(0, len(images), each)])
            for number, shard in enumerate(data):
                (folder / f"{number:04}.tfrecord").write_bytes(shard)
        return folder

    def commit(self):
        """The cost of commits at the highest rate: alternating runs, medians."""
        pipeline, tfrecords = self.small_set()
        images = dataset.make(self.work, 20_000, SMALL)
        few, many = self.shards_of(2000, images), self.shards_of(20, images)
        # the same shards under second names make the run longer, so that filling the pipeline weighs less
        again = self.work / "commit-again"
        again.mkdir(exist_ok=True)
        for shard in Path(tfrecords).iterdir():
            (again / shard.name).unlink(missing_ok=True)
            os.link(shard, again / shard.name)
        rates, costs, sinks = [], [], []
        for _ in range(TURNS + 2):
            speeds = [self.run(pipeline, [folder], "commit", ())["images_per_second"] for folder in (few, many)]
            rates.append(speeds[1] / speeds[0])
            # frequent checkpoints, so that this short run has some
            summary = self.run(pipeline, [tfrecords, again], "commit", ("output.checkpoint_seconds=3",))
            self.figures.setdefault("runs with commits and checkpoints", []).append(summary)
            finish = summary["finish_seconds"]
            # every wait of the GPU counts, not only waits for commits
            waited = summary["gpu_idle_share"] * summary["seconds"]
            costs.append((waited + finish) / (summary["seconds"] + finish))
            sinks.append(next(stage["busy"] for stage in summary["stages"] if stage["stage"] == "sink"))
        rate, cost = statistics.median(rates), statistics.median(costs)
        self.figures |= {"1,000 shards over 10": rates, "waiting and finishing": costs, "sink's thread busy": sinks}
        self.demand("1,000 shards of 20 images: at least 0.9 of 10 of 2,000", f"{rate:.3f} of {rounded(rates)}", rate >= 0.9)
        figure = f"{cost:.4f} of {rounded(costs)}, {summary['shards']} shards; the sink's thread is busy {statistics.median(sinks):.3f}"
        self.demand("GPU kept waiting, then manifest and _SUCCESS: less than 2% of a run", figure, cost < 0.02)

    # --- Faults --------------------------------------------------------------------------------

    def resume(self):
        """Compare a resumed run with an uninterrupted one. The images of their batches differ."""
        pipeline, images = self.small_set()
        whole = self.run(pipeline, [images], "whole", ("output.scores=all",))
        settings = ("output.scores=all", "output.checkpoint_seconds=0.2")
        output = self.work / "killed"
        shutil.rmtree(output, ignore_errors=True)
        words = [self.args.sluice, "run", pipeline, "--output", output, "--input", images]
        words += [word for setting in settings for word in ("--set", setting)]
        environment = {**os.environ, "SLUICE_CACHE_DIR": str(self.work / "cache")}
        for _ in range(2):
            with subprocess.Popen(list(map(str, words)), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
                try:
                    killed.wait(whole["startup_seconds"] + whole["seconds"] / 3)
                except subprocess.TimeoutExpired:
                    killed.kill()
        done = self.sluice(*words[1:])
        summary = json.loads((output / "_manifest.json").read_text())["summary"] if done.returncode == 0 else {}
        code, found = self.diff("whole", "killed", "--tolerance", 0)
        figure = f"{found}; {summary.get('reused_rows')} of {summary.get('rows')} rows were there"
        met = done.returncode == 0 and code == 0 and 0 < summary["reused_rows"] < summary["rows"]
        self.demand("a run that is killed twice and resumed gives the same bits", figure, met)
        verified = self.sluice("verify", output)
        self.demand("and `sluice verify` accepts its output", verified.stdout.strip()[-200:], verified.returncode == 0)

    def faults(self):
        engine = self.work / "v2s.engine"
        built = self.sluice("build-engine", "--onnx", self.v2s["fp16"], "--saveEngine", engine, "--shapes", "input_1:32x384x384x3")
        self.demand("build-engine writes an engine and its passport", built.stderr[-200:], built.returncode == 0 and Path(f"{engine}.json").is_file())
        passport = json.loads(Path(f"{engine}.json").read_text())
        pipeline = self.pipeline("fault", engine, 384)

        def expect(what, code, words, settings=(), environment=None):
            output = self.work / "fault"
            shutil.rmtree(output, ignore_errors=True)
            settings = ("engine.batch_size=32", *settings)
            words_set = [word for setting in settings for word in ("--set", setting)]
            done = self.sluice("run", pipeline, "--input", ROOT / "fixtures/photos", "--output", output, *words_set, environment=environment)
            error = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
            met = done.returncode == code and words in done.stderr and not output.exists()
            self.demand(f"{what}: exit code {code}, before any output", f"{done.returncode}: {error[-300:]}", met)

        for key, value, words in (
            ("gpu", "NVIDIA T4", "NVIDIA T4"),
            ("compute_capability", "7.5", "7.5"),
            ("tensorrt_version", "1.0", "1.0"),
        ):
            Path(f"{engine}.json").write_text(json.dumps({**passport, key: value}))
            expect(f"an engine for another {key}", 7, words)
        Path(f"{engine}.json").write_text(json.dumps(passport))
        whole = engine.read_bytes()
        engine.write_bytes(whole[: len(whole) // 2])
        expect("a truncated engine", 7, "damaged")
        Path(f"{engine}.json").unlink()
        expect("a truncated engine without a passport", 7, "build it again")
        engine.write_bytes(whole)
        expect("a missing library", 4, "was not found", environment={"SLUICE_TENSORRT_DIR": "/nowhere"})
        expect("no GPU", 4, "GPU", environment={"CUDA_VISIBLE_DEVICES": ""})

    # --- Memory --------------------------------------------------------------------------------

    def memory(self):
        """Whether the batch size that sluice suggests instead of 4096 fits on a GPU of 80 GB."""
        with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            if holder.stdout.readline().strip() != b"held":
                raise RuntimeError("torch could not take the memory beyond 80 GB")
            what = "out of memory at batch 4096: exit code 4, before any output, and what would fit"
            code, error, output = self.score_photos(4096)
            fits = re.search(r"about (\d+) would fit", error)
            self.demand(what, f"{code}: {error[-400:]}", code == 4 and fits and not output.exists())
            if fits:
                code, error, _ = self.score_photos(int(fits[1]))
                self.demand("the suggested batch size fits", f"batch {fits[1]}: {code}: {error[-200:]}", code == 0)
            holder.communicate()

    def score_photos(self, batch):
        """Exit code, stderr and output of a run with EfficientNetV2-S in fp32."""
        pipeline, output = self.pipeline("memory", self.v2s["fp32"], 384), self.work / "memory"
        shutil.rmtree(output, ignore_errors=True)
        photos = ROOT / "fixtures/photos"
        done = self.sluice("run", pipeline, "--input", photos, "--output", output, "--set", f"engine.batch_size={batch}")
        return done.returncode, done.stderr.strip(), output


def cpu():
    """Model name of the first core."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sluice", type=Path, default=ROOT / "target/release/sluice")
    parser.add_argument("--engine-tests", type=Path, help="the binary that `cargo test --test gpu_engines --no-run` builds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "gpu-check.json")
    parser.add_argument("--work", type=Path, help="keep models, images and outputs here")
    args = parser.parse_args()
    args.sluice = args.sluice.resolve()
    args.engine_tests = args.engine_tests and args.engine_tests.resolve()

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        work = args.work or Path(work)
        work.mkdir(parents=True, exist_ok=True)
        check = Check(args, work)
        host = {"cpu": cpu(), "cores": os.cpu_count(), "doctor": check.sluice("doctor").stdout.splitlines()}
        print("\n".join(host["doctor"]))
        check.models()
        report = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        demands = []
        for part in args.parts:
            check.figures, check.demands = {}, []
            try:
                getattr(check, part)()
            except Exception as error:  # continue with the other parts and the report
                check.demand(f"{part} runs to its end", repr(error)[-1500:], False)
            demands += check.demands
            if check.demands:
                date = datetime.now(UTC).date().isoformat()
                report[part] = {"date": date, "host": host, "demands": check.demands, "figures": check.figures}
                args.json.write_text(json.dumps(report, indent=2) + "\n")
    rows = [[one["demand"], one["figure"], "met" if one["met"] else "NOT MET"] for one in demands]
    print(metered.markdown(["demand", "figure", ""], rows))
    return 0 if all(one["met"] for one in demands) else 1


if __name__ == "__main__":
    sys.exit(main())
