"""Part `kills`: SIGKILL of workers, pools, TaskManagers and executors at random moments of jobs.

- A kill counts if its target was alive and the job had not ended.
- Flink starts a failed job again up to 3 times, Spark gives each task 4 attempts. If a worker is killed while Flink's
  tasks open, Beam's runner keeps a reference to the job's environment for good, and all attempts after the next kill
  get the dead worker. So a job on Flink is killed again only if it had stored a part before the first kill.
- Prism and Beam's Python job service never retry. There a job must fail in seconds, and `sluice run` finishes the
  output.
"""

import shutil
import time
from dataclasses import dataclass

import inputs
import processes
import rows
from claims import say

POLL_SECONDS = 0.005

# The age of a target up to which it is killed if there was none before. If a worker dies within milliseconds, between
# its control stream and its data stream, Flink notices only after 3 minutes.
AGE_SECONDS = 1.0

# A worker that lost its runner or its host must have ended by then.
LEFT_SECONDS = 30
# A job on a runner without retries must have failed by then.
FAILED_SECONDS = 30


@dataclass(frozen=True)
class Scene:
    """What is killed where, how often in one job, and the share of all kills."""

    runner: str
    target: str
    share: int  # of 100 kills
    per_job: int

    @property
    def retries(self):
        return self.runner not in ("python", "prism")


SCENES = [
    Scene("flink", "worker", 24, 2),
    Scene("flink", "pool", 12, 2),
    Scene("flink-cluster", "worker", 12, 2),
    Scene("flink-cluster", "TaskManager", 12, 2),
    Scene("spark", "worker", 14, 3),
    Scene("spark", "pool", 6, 3),
    Scene("spark-cluster", "executor", 6, 3),
    Scene("spark-cluster", "worker", 4, 3),
    Scene("prism", "worker", 5, 1),
    Scene("python", "pool", 5, 1),
]


class Tally:
    """The kills of one scene, and what came of them."""

    def __init__(self):
        self.kills = self.jobs = self.spared = self.strays = 0
        self.seconds, self.faults, self.parts_at_kill = [], [], []


def part(torture):
    with torture.work("kills") as work:
        pipeline = inputs.write_pipeline(work)
        random = torture.random("kills")
        # some shards are long enough for checkpoints
        sizes = [random.choice((0, 20, 60, 150)) for _ in range(110)] + [2500] * 3
        random.shuffle(sizes)
        folder = inputs.write_tars(work / "in", sizes, random, size=(256, 192))
        alone = torture.sluice.run(pipeline, [folder], work / "alone")
        if alone.code:
            torture.claims.add("sluice run scores the input", f"exit code {alone.code}: {alone.reason()}", False)
            return
        expected = rows.rows(work / "alone")
        say(f"{rows.count(expected)} rows of {len(expected)} shards, {alone.seconds:.1f} s alone")
        killing = Killing(torture, work, pipeline, folder, expected)
        wanted = shares(torture.kills)
        total, left = 0, 0
        for runner in dict.fromkeys(scene.runner for scene in SCENES):
            with torture.runners.running(runner) as endpoint:
                killing.undisturbed(runner, endpoint)
                for scene in (scene for scene in SCENES if scene.runner == runner and wanted[scene]):
                    tally = killing.scene(scene, endpoint, torture.random(f"kills {scene}"), wanted[scene])
                    total += tally.kills
                    claim(torture, scene, tally)
                left += killing.count_left(runner)
        torture.claims.add("kills of live processes in the middle of a job", f"{total}", total >= torture.kills)
        torture.claims.add(f"workers left {LEFT_SECONDS} s after their jobs", f"{left}", left == 0)


def shares(kills):
    """The number of kills of each scene."""
    ends = [round(kills * sum(scene.share for scene in SCENES[: number + 1]) / 100) for number in range(len(SCENES))]
    return {scene: end - start for scene, start, end in zip(SCENES, [0, *ends], ends)}


def claim(torture, scene, tally):
    for fault in tally.faults:
        say(f"FAILED {fault}")
    at = sorted(tally.parts_at_kill)
    spread = f"{at[0]} to {at[-1]} parts stored at a kill, median {at[len(at) // 2]}" if at else "none"
    figure = f"{tally.kills} kills in {tally.jobs} jobs, {tally.spared} jobs ended before a kill; {spread}"
    figure += f"; {len(tally.faults)} faults, {tally.strays} outputs with unlisted files"
    if scene.retries:
        what = f"kill -9 of a {scene.target}, {scene.runner}: every job ends DONE, rows identical, verified"
    else:
        what = f"kill -9 of a {scene.target}, {scene.runner}: FAILED with a reason, and sluice run finishes the output"
        figure += f"; failed after {max(tally.seconds, default=0):.1f} s at most"
    torture.claims.add(what, figure, not tally.faults and tally.kills > 0)


class Killing:
    """Jobs over one input, whose processes are killed."""

    def __init__(self, torture, work, pipeline, folder, expected):
        self.torture, self.work, self.pipeline, self.folder = torture, work, pipeline, folder
        self.expected, self.pool, self.jobs = expected, None, 0
        # seconds until the first part and until the end of a job that no one disturbs
        self.first = self.whole = 0.0

    def undisturbed(self, runner, endpoint):
        """Time a job that no one disturbs."""
        with self.torture.pool(self.work) as self.pool:
            # the first job of a runner is slower
            for _ in range(2):
                first, (output, submitted) = None, self.submit("pool", endpoint)
                while submitted.is_running():
                    if first is None and (output / "predictions").exists():
                        first = submitted.seconds()
                    time.sleep(POLL_SECONDS)
                ended = submitted.wait()
                if ended.code:
                    raise RuntimeError(f"a job on {runner} failed without a kill: {ended.text}")
        say(f"{runner}: {ended.seconds:.1f} s undisturbed, first part after {first:.1f} s")
        self.first, self.whole = first, ended.seconds

    def scene(self, scene, endpoint, random, wanted):
        tally = Tally()
        if scene.target == "pool":
            with self.torture.pool(self.work) as self.pool:
                self.until(wanted, scene, endpoint, random, tally)
        else:
            self.until(wanted, scene, endpoint, random, tally)
        return tally

    def until(self, wanted, scene, endpoint, random, tally):
        """Kill until `wanted` kills have hit, or too many jobs have ended before a kill."""
        while tally.kills < wanted and tally.jobs < 3 + 2 * wanted and len(tally.faults) < 5:
            self.job(min(wanted - tally.kills, scene.per_job), scene, endpoint, random, tally)
            say(f"{scene.runner}, {scene.target}: {tally.kills} of {wanted} kills, {len(tally.faults)} faults")

    def submit(self, target, endpoint):
        self.jobs += 1
        output = self.work / f"out-{self.jobs}"
        environment = self.pool.environment if target == "pool" else "process"
        return output, self.torture.sluice.submit(self.pipeline, [self.folder], output, endpoint, environment)

    def job(self, kills, scene, endpoint, random, tally):
        output, submitted = self.submit(scene.target, endpoint)
        hits, killed = 0, 0.0
        # from the start of the workers on, as in an undisturbed job
        begin = 0.7 * self.first
        for number in range(kills):
            if number == 0:
                moment = begin + random.random() * (self.whole - begin)
            else:
                # a job has less left to do after a kill
                moment = submitted.seconds() + 1.0 + random.random() * 0.5 * (self.whole - begin)
            target = self.target_at(moment, submitted, scene, random)
            if target is None:
                break
            stored = len(rows.parts(output))
            was_finished = (output / "_SUCCESS").exists()
            if target.kill() and submitted.is_running():
                killed = submitted.seconds()
                hits += 1
                tally.parts_at_kill.append(stored)
            if scene.target == "TaskManager":
                self.torture.runners.start(scene.runner)
            if scene.runner.startswith("flink") and stored == 0:
                break
        ended = submitted.wait()
        tally.jobs += 1
        tally.kills += hits
        if hits == 0:
            tally.spared += 1
            # the machine may be faster by now
            self.whole = min(self.whole, ended.seconds)
        if scene.retries or hits == 0 or was_finished:
            self.check(ended, output, scene, tally)
        else:
            tally.seconds.append(ended.seconds - killed)
            self.check_failed(ended, output, scene, tally)
        if scene.target == "TaskManager":
            self.torture.runners.start(scene.runner)

    def target_at(self, moment, submitted, scene, random):
        """A live target at that second of the job; None if the job has ended by then.

        If there is none, up to `AGE_SECONDS` after the next one appears.
        """
        is_late = False
        while submitted.is_running():
            if submitted.seconds() >= moment:
                found = self.targets(scene)
                if found and not is_late:
                    return random.choice(found)
                if found:
                    is_late, moment = False, submitted.seconds() + random.random() * AGE_SECONDS
                else:
                    is_late = True
            time.sleep(POLL_SECONDS)
        return None

    def targets(self, scene):
        runners = self.torture.runners
        match scene.target:
            case "worker":
                return runners.workers(scene.runner, self.torture.sluice.binary)
            case "executor":
                return runners.executors(scene.runner)
            case "pool":
                found = [processes.find(self.pool.pid)]
            case "TaskManager":
                found = [runners.process(f"flink-taskmanager-{number}") for number in (1, 2)]
        return [process for process in found if process]

    def check(self, ended, output, scene, tally):
        """The job has succeeded, and its output is right."""
        fault = f"exit code {ended.code}: {ended.reason()}" if ended.code else self.torture.fault(output, self.expected)
        self.close(fault, ended, output, scene, tally)

    def check_failed(self, ended, output, scene, tally):
        """The job has failed in time, with a reason, and `sluice run` finishes its output."""
        fault = None
        if ended.code in (0, None) or ended.code < 0:
            fault = f"exit code {ended.code} after a kill"
        elif tally.seconds[-1] > FAILED_SECONDS:
            fault = f"failed {tally.seconds[-1]:.0f} s after the kill"
        elif "ERROR" not in ended.text:
            fault = "failed without a reason"
        else:
            resumed = self.torture.sluice.run(self.pipeline, [self.folder], output)
            if resumed.code:
                fault = f"sluice run: exit code {resumed.code}: {resumed.reason()}"
            else:
                fault = self.torture.fault(output, self.expected)
        self.close(fault, ended, output, scene, tally)

    def close(self, fault, ended, output, scene, tally):
        if fault:
            log = output.with_suffix(".log")
            log.write_text(ended.text)
            tally.faults.append(f"{scene.runner}, {scene.target}: {fault} (the submitter's log is {log})")
        else:
            tally.strays += bool(rows.strays(output))
            shutil.rmtree(output)

    def count_left(self, runner):
        """The workers that are left some time after the last job."""
        until = time.monotonic() + LEFT_SECONDS
        while (left := self.torture.runners.workers(runner, self.torture.sluice.binary)) and time.monotonic() < until:
            time.sleep(0.1)
        return len(left)
