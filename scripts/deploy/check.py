#!/usr/bin/env python3
"""Hold the manifests in this folder against the platforms' schemas and against sluice's own promises.

    scripts/deploy/check.py --sluice target/debug/sluice

- Kubernetes manifests fit the schema of that version, GCP Batch's the API's messages.
- The exit codes that end a job are those that the README's table says not to retry, no more and no fewer; of those
  that say to go on, none counts as a failure in Kubernetes.
- `sluice run` knows every flag, and a worker's number and count fit what the platform tells.
- There is time left between SIGTERM and SIGKILL after --grace; on spot nodes 15 s in all.
- The memory that `sluice check` says the queues and decoders may take at most is there, and room for the model.
- A night's folder follows from the name that a CronJob gives its Job, in the shell of the image.
- Files that are compiled in reach the image's build.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from google.cloud import batch_v1

KUBERNETES = "1.33"
FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent.parent / "README.md"
# From the notice to a spot node's end, as far as GKE leaves it to pods that are not the system's.
SPOT_SECONDS = 15

failures = []


def check(what, holds):
    print(f"{'ok' if holds else 'FAILED'}: {what}")
    if not holds:
        failures.append(what)


def documented():
    """From the README's table of exit codes: those that no retry mends, and those that go on when retried."""
    final, resumed = set(), set()
    for codes, advice in re.findall(r"^\| ([\d, ]+) \|.*\| ([^|]+) \|$", README.read_text(), re.M):
        numbers = {int(code) for code in codes.split(",")}
        if re.match(r"no\b", advice):
            final |= numbers
        elif re.match(r"(yes|again)\b", advice):
            resumed |= numbers
    return final, resumed


def known_flags(sluice):
    return set(re.findall(r"--[a-z-]+", subprocess.check_output([sluice, "run", "--help"], text=True)))


def check_flags(name, words, flags):
    unknown = {word.split("=")[0] for word in words if word.startswith("--")} - flags
    check(f"{name}: `sluice run` knows every flag {sorted(unknown) or ''}", not unknown)


def value(words, flag):
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"{flag}=")), None)


def bound_bytes(sluice, words):
    """What the queues and decoders of such a run take at most; engines are left out, a GPU's cannot load here."""
    settings = [word for word in words if re.match(r"--set=(preprocess|input|engine\.batch_size)", word)]
    command = [sluice, "check", "pipelines/safety.toml", "--input=fixtures/photos", "--output=out/check", *settings]
    plan = json.loads(subprocess.check_output(command, cwd=README.parent, text=True))
    return sum(plan["memory_bound_bytes"].values())


# What a model and its runtime take beside that: ONNX Runtime some 300 MB, TensorRT and CUDA's libraries 2 GB.
MODEL_BYTES = 2 << 30


def check_memory(name, sluice, words, limit_bytes):
    needed = bound_bytes(sluice, words) + MODEL_BYTES
    check(f"{name}: {needed >> 20} MiB at most, of {limit_bytes >> 20} MiB", needed <= limit_bytes)


def check_kubernetes(path, sluice, flags, final, resumed):
    manifest = yaml.safe_load(path.read_text())
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        fits = True
    except kubernetes_validate.ValidationError as error:
        print(error)
        fits = False
    check(f"{path.name}: fits Kubernetes {KUBERNETES}", fits)

    job = manifest["spec"] if manifest["kind"] == "Job" else manifest["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    words = " ".join(container["args"]).split()
    check_flags(path.name, words, flags)
    same = value(words, "--num-shards") == str(job["completions"])
    check(f"{path.name}: --num-shards is the number of completions", same)

    rules = job["podFailurePolicy"]["rules"]
    codes = {"FailJob": set(), "Ignore": set()}
    for rule in rules:
        if "onExitCodes" in rule:
            codes[rule["action"]] |= set(rule["onExitCodes"]["values"])
            check(f"{path.name}: a rule names the container", rule["onExitCodes"]["containerName"] == container["name"])
    check(f"{path.name}: what is final ends the job: {sorted(final)}", codes["FailJob"] == final)
    check(f"{path.name}: what goes on costs no retry: {sorted(resumed)}", codes["Ignore"] == resumed)
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    check(f"{path.name}: neither does a preempted pod", rules[0] == disrupted and pod["restartPolicy"] == "Never")
    spare = pod["terminationGracePeriodSeconds"] - float(value(words, "--grace"))
    check(f"{path.name}: {spare:.0f} s from the end of --grace to SIGKILL", spare >= 10)
    if "cloud.google.com/gke-spot" in pod.get("nodeSelector", {}):
        check(f"{path.name}: --grace ends before a spot node does", float(value(words, "--grace")) <= SPOT_SECONDS - 2)
    limit = container["resources"]["limits"]["memory"]
    check_memory(path.name, sluice, words, int(limit.removesuffix("Gi")) << 30)
    if manifest["kind"] == "CronJob":
        script = container["args"][0].replace("exec sluice", "echo")
        environment = {"JOB_NAME": f"{manifest['metadata']['name']}-29904600", "PATH": "/usr/bin:/bin"}
        said = subprocess.check_output([*container["command"], script], env=environment, text=True)
        check(f"{path.name}: the night of minute 29,904,600 is that of 2026-11-09", "/safety/2026-11-09 " in said)
        for name in ("rerun-2", "manual", "29904600-retry"):
            environment["JOB_NAME"] = f"{manifest['metadata']['name']}-{name}"
            done = subprocess.run([*container["command"], script], env=environment, capture_output=True)
            check(f"{path.name}: a Job called …-{name} is refused", done.returncode == 2 and not done.stdout)


def check_batch(path, sluice, flags, final):
    text = path.read_text()
    job = batch_v1.Job.from_json(text)  # an unknown field is an error
    [group] = job.task_groups
    task = group.task_spec
    words = list(task.runnables[0].container.commands)
    check(f"{path.name}: fits the API, {group.task_count} tasks", group.task_count > 1)
    check_flags(path.name, words, flags)
    check(f"{path.name}: tasks are counted by Batch", value(words, "--num-shards") is None)
    [policy] = task.lifecycle_policies
    fails = policy.action == batch_v1.LifecyclePolicy.Action.FAIL_TASK
    same = set(policy.action_condition.exit_codes) == final
    check(f"{path.name}: what is final fails its task: {sorted(final)}; the rest is retried", fails and same)
    # a preemption counts as one of them
    check(f"{path.name}: preempted tasks are retried, as often as Batch may", task.max_retry_count == 10)
    check_memory(path.name, sluice, words, task.compute_resource.memory_mib << 20)


def check_dockerfile(path):
    text = path.read_text()
    version = re.search(r"^ORT_VERSION=(\S+)", (FOLDER.parent / "setup.sh").read_text(), re.M).group(1)
    libraries = re.findall(r"libonnxruntime\.so\.([\d.]+\d)", text)
    check("Dockerfile: ONNX Runtime is the one that setup.sh fetches", set(libraries) == {version})
    rust = re.search(r'^rust-version = "(\S+)"', (README.parent / "Cargo.toml").read_text(), re.M).group(1)
    check("Dockerfile: Rust is the one that Cargo.toml asks for", f"FROM rust:{rust}-" in text)
    copied = re.findall(r"^COPY (?!--from)(\S+)", text, re.M)
    missing = [name for name in copied if not (README.parent / name).exists()]
    check(f"Dockerfile: everything copied is there {missing or ''}", not missing)
    ignored = path.with_suffix(".dockerignore").read_text().splitlines()
    lost = sorted({str(name) for name in compiled_in() if is_ignored(str(name), ignored)})
    check(f"Dockerfile: everything compiled in reaches the build {lost or ''}", not lost)


def compiled_in():
    """Files that the sources include, tests aside: these begin at a module of that name."""
    top = README.parent
    for source in sorted((top / "src").rglob("*.rs")):
        if {"tests", "fuzz", "benches"} & set(source.relative_to(top).parts):
            continue
        text = source.read_text().split("#[cfg(test)]\nmod ")[0]
        for name in re.findall(r'include_(?:bytes|str)!\(\s*"([^"]+)"', text):
            yield (source.parent / name).resolve().relative_to(top)


def is_ignored(name, rules):
    """As Docker does: the last rule that fits the file or a folder above it decides."""
    parts = name.split("/")
    above = {"/".join(parts[: length + 1]) for length in range(len(parts))}
    ignored = False
    for rule in rules:
        if rule and not rule.startswith("#") and rule.lstrip("!").strip("/") in above:
            ignored = not rule.startswith("!")
    return ignored


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sluice", required=True)
    sluice = Path(arguments.parse_args().sluice).resolve()
    flags = known_flags(sluice)
    final, resumed = documented()
    check("the README's table names final and resumable exit codes", bool(final) and bool(resumed))
    for path in sorted(FOLDER.glob("kubernetes-*.yaml")):
        check_kubernetes(path, sluice, flags, final, resumed)
    check_batch(FOLDER / "gcp-batch.json", sluice, flags, final)
    check_dockerfile(FOLDER / "Dockerfile")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
