"""Part `bad`: mistakes and lost services. Each ends in time, with the right exit code and a message that names it.

The exit codes are those of `sluice --help`.
"""

import shutil
import time
from dataclasses import dataclass

import inputs
import rows

LIMIT_SECONDS = 60

FAILED, USAGE, INPUT, ENGINE, TOO_MANY_ERRORS, OUTPUT, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130


@dataclass
class Bench:
    """What the situations share."""

    torture: object
    work: object
    pipeline: object
    folder: object  # the input, small
    large: object  # an input that takes some seconds
    expected: dict  # rows of `large`
    outputs: int = 0

    def output(self):
        self.outputs += 1
        return self.work / f"out-{self.outputs}"

    def submit(self, endpoint, environment="process", *arguments, folder=None, output=None, pipeline=None):
        output = output or self.output()
        inputs = [folder or self.folder]
        return self.torture.sluice.submit(pipeline or self.pipeline, inputs, output, endpoint, environment, *arguments)

    def claim(self, what, ended, codes, words):
        """The command has ended in time, with one of the codes, and its log has one of the words."""
        is_said = any(word in ended.text for word in words)
        in_time = ended.seconds <= LIMIT_SECONDS
        figure = f"exit code {ended.code} after {ended.seconds:.1f} s"
        if not is_said:
            figure += f", without any of {', '.join(words)}"
        if not (is_said and ended.code in codes):
            figure += f": {ended.reason()}"
        self.torture.claims.add(what, figure, ended.code in codes and in_time and is_said)


def part(torture):
    with torture.work("bad") as work:
        random = torture.random("bad")
        pipeline = inputs.write_pipeline(work)
        folder = inputs.write_tars(work / "in", [20] * 5, random)
        large = inputs.write_tars(work / "large", [120] * 150, random)
        alone = torture.sluice.run(pipeline, [large], work / "alone")
        if alone.code:
            torture.claims.add("sluice run scores the input", f"exit code {alone.code}: {alone.reason()}", False)
            return
        bench = Bench(torture, work, pipeline, folder, large, rows.rows(work / "alone"))
        before_a_job(bench)
        with torture.runners.running("python") as endpoint, torture.pool(work) as pool:
            of_the_run(bench, endpoint, pool)
        for runner in ("prism", "flink", "spark"):
            with torture.runners.running(runner) as endpoint:
                bench.submit(endpoint).wait()  # the first job of a runner is slower
                of_workers(bench, runner, endpoint)
                # Spark's job server runs one job at a time, and fails the other
                if runner != "spark":
                    with torture.pool(work) as pool:
                        two_jobs(bench, runner, endpoint, pool)
                interrupt(bench, runner, endpoint)
                lost_service(bench, runner, endpoint)


def before_a_job(bench):
    """What the submitter itself finds out."""
    closed = f"localhost:{bench.torture.own_port + 3}"
    ended = bench.submit(closed).wait()
    bench.claim("the job service's port is closed", ended, [FAILED], [closed])

    ended = bench.submit("localhost:0").wait()
    bench.claim("the job endpoint is no address", ended, [USAGE], ["--job-endpoint"])

    folder = bench.work / "no-model"
    folder.mkdir()
    pipeline = inputs.write_pipeline(folder)
    (folder / "tiny.onnx").unlink()
    ended = bench.submit(closed, pipeline=pipeline).wait()
    bench.claim("the model is missing", ended, [ENGINE], ["tiny.onnx"])

    (bench.work / "file").write_bytes(b"")
    ended = bench.submit(closed, output=bench.work / "file" / "out").wait()
    bench.claim("the output cannot be written", ended, [OUTPUT], ["file/out"])


def of_the_run(bench, endpoint, pool):
    """What workers find out about the run: the exit codes are those of `sluice run`."""
    environment = pool.environment
    ended = bench.submit(endpoint, environment, folder=bench.work / "nothing").wait()
    bench.claim("the input is missing", ended, [INPUT], ["nothing"])

    damaged = bench.work / "damaged"
    shutil.copytree(bench.folder, damaged)
    tar = damaged / "00002.tar"
    tar.write_bytes(tar.read_bytes()[:-2500])
    output = bench.output()
    ended = bench.submit(endpoint, environment, folder=damaged, output=output).wait()
    bench.claim("a shard is damaged", ended, [TOO_MANY_ERRORS], ["too many errors"])

    other = ["--set", "preprocess.scale=0.5"]
    ended = bench.submit(endpoint, environment, *other, folder=damaged, output=output).wait()
    bench.claim("the output has a run of another plan", ended, [OUTPUT], ["preprocess.scale"])

    output = bench.output()
    submitted = bench.submit(endpoint, environment, folder=bench.large, output=output)
    while submitted.is_running() and "accepted the job" not in submitted.text():
        time.sleep(0.005)
    model = bench.work / "tiny.onnx"
    model.rename(model.with_suffix(".away"))
    ended = submitted.wait()
    model.with_suffix(".away").rename(model)
    bench.claim("the model is removed after the submission: the job has its copy", ended, [0], ["done"])


def of_workers(bench, runner, endpoint):
    """Workers that do not start."""
    # Prism fails such a job at once or leaves it RUNNING, so that the submitter cancels it
    ended = bench.submit(endpoint, "process", "--worker-command", bench.work / "no-sluice").wait()
    bench.claim(f"{runner}: the worker's binary is missing", ended, [FAILED], ["no-sluice"])

    ended = bench.submit(endpoint, "process", "--worker-command", "/bin/false").wait()
    bench.claim(f"{runner}: the worker exits at once", ended, [FAILED], ["no worker has started", "/bin/false"])

    # this ends Prism itself
    said = "lost the job service" if runner == "prism" else "ended as FAILED"
    closed = f"127.0.0.1:{bench.torture.own_port + 3}"
    ended = bench.submit(endpoint, f"external={closed}").wait()
    bench.claim(f"{runner}: the pool's port is closed", ended, [FAILED], [said])
    bench.torture.runners.start(runner)

    ended = bench.submit(endpoint, "process", "--worker-env", "ORT_DYLIB_PATH=/nonexistent.so").wait()
    bench.claim(f"{runner}: workers have no ONNX Runtime", ended, [ENGINE], ["/nonexistent.so"])


def two_jobs(bench, runner, endpoint, pool):
    """Two jobs at once on one pool."""
    outputs = [bench.output(), bench.output()]
    jobs = [bench.submit(endpoint, pool.environment, folder=bench.large, output=output) for output in outputs]
    ended = [job.wait() for job in jobs]
    faults = [
        f"exit code {end.code}: {end.reason()}" if end.code else bench.torture.fault(output, bench.expected)
        for end, output in zip(ended, outputs, strict=True)
    ]
    found = [fault for fault in faults if fault]
    figure = found[0] if found else f"{max(end.seconds for end in ended):.1f} s"
    bench.torture.claims.add(f"{runner}: two jobs at once on one pool are both right", figure, not found)


def interrupt(bench, runner, endpoint):
    """Ctrl-C, and the same command again."""
    output = bench.output()
    submitted = bench.submit(endpoint, folder=bench.large, output=output)
    until_parts(output, 5, submitted)
    submitted.interrupt()
    ended = submitted.wait()
    # a job may end in the moment of the signal
    codes, words = ([0], ["done"]) if ended.code == 0 else ([INTERRUPTED], ["cancelled"])
    bench.claim(f"{runner}: Ctrl-C during the job", ended, codes, words)
    again(bench, f"{runner}: the same command after Ctrl-C", endpoint, output)


def lost_service(bench, runner, endpoint):
    """SIGKILL of the job server during the job, and the same command with a new one."""
    output = bench.output()
    submitted = bench.submit(endpoint, folder=bench.large, output=output)
    until_parts(output, 5, submitted)
    killed = submitted.seconds()
    if process := bench.torture.runners.process(runner):
        process.kill()
    ended = submitted.wait()
    bench.claim(f"{runner}: the job server is killed during the job", ended, [FAILED], [endpoint, "job service"])
    bench.torture.claims.add(
        f"{runner}: the submitter misses the job server", f"{ended.seconds - killed:.1f} s", ended.seconds - killed < 60
    )
    bench.torture.runners.start(runner)
    again(bench, f"{runner}: the same command with a new job server", endpoint, output)


def again(bench, what, endpoint, output):
    ended = bench.submit(endpoint, folder=bench.large, output=output).wait()
    fault = f"exit code {ended.code}: {ended.reason()}" if ended.code else bench.torture.fault(output, bench.expected)
    bench.torture.claims.add(f"{what} finishes: rows identical, verified", fault or f"{ended.seconds:.1f} s", not fault)


def until_parts(output, count, submitted):
    """Wait until the job has stored that many parts, or has ended."""
    while submitted.is_running() and len(rows.parts(output)) < count:
        time.sleep(0.005)
