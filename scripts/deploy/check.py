#!/usr/bin/env python3
"""Check the manifests in this folder against the platforms' schemas, the README and the binary.

    scripts/deploy/check.py --sluice target/debug/sluice

- Kubernetes manifests fit the schema of KUBERNETES, and those of GCP Batch fit the API's messages.
- The exit codes that end a job are exactly those that the README's table marks `never`. In Kubernetes, the codes that
  the table marks `again: it resumes` do not count as failures.
- `sluice run` knows every flag, and the number of a worker comes from the platform.
- SIGKILL comes well after --grace; on spot nodes, the grace ends within the 15 s that they leave.
- The memory limit covers the bound that `sluice check` prints, and the model.
- The pipeline file comes from a ConfigMap or a mounted bucket, and `sluice check` accepts it.
- Nodes with GPUs have the driver that the README requires.
- Every job that scores is followed by one that verifies the same output. A day without images does not fail a CronJob.
- A CronJob derives the folder of a night from the name of its Job, in the shell of the image.
- The build context of the image has all files that the sources include.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml
from google.cloud import batch_v1

KUBERNETES = "1.33"
FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent.parent / "README.md"
# Seconds that GKE leaves pods between the notice and the end of a spot node.
SPOT_SECONDS = 15

failures = []


def check(what, holds):
    print(f"{'ok' if holds else 'FAILED'}: {what}")
    if not holds:
        failures.append(what)


def documented():
    """From the README's table, exit codes of `run`: those for which no retry helps, and those whose retry resumes."""
    final, resumed = set(), set()
    rows = re.findall(r"^\| ([\d, ]+) \| (.*) \| ([^|]+) \|$", README.read_text(), re.M)
    for codes, meaning, advice in rows:
        if meaning.startswith("`verify`:"):
            continue
        numbers = {int(code) for code in codes.split(",")}
        if re.match(r"never(:|$)", advice):
            final |= numbers
        elif re.match(r"again: it resumes\b", advice):
            resumed |= numbers
    return final, resumed


def known_flags(sluice):
    return set(re.findall(r"--[a-z-]+", subprocess.check_output([sluice, "run", "--help"], text=True)))


def check_flags(name, words, flags):
    unknown = {word.split("=")[0] for word in words if word.startswith("--")} - flags
    check(f"{name}: `sluice run` knows every flag {sorted(unknown) or ''}", not unknown)


def value(words, flag):
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"{flag}=")), None)


def bound_bytes(sluice, words, pipeline):
    """The memory bound of a run, from `sluice check`. The engine is the CPU's, since this host may lack a GPU."""
    settings = [word for word in words if re.match(r"--set=(preprocess|input|engine\.batch_size)", word)]
    here = ["--set=engine.kind=onnxruntime", "--set=model.path=.deps/models/open-nsfw.onnx"]
    command = [sluice, "check", pipeline, "--input=fixtures/photos", "--output=out/check", *settings, *here]
    plan = json.loads(subprocess.check_output(command, cwd=README.parent, text=True))
    return sum(plan["memory_bound_bytes"].values())


# Memory of a model and its runtime: some 300 MB with ONNX Runtime, 2 GB with TensorRT and CUDA's libraries.
MODEL_BYTES = 2 << 30


def check_memory(name, sluice, words, pipeline, limit_bytes):
    needed = bound_bytes(sluice, words, pipeline) + MODEL_BYTES
    check(f"{name}: {needed >> 20} MiB at most, of {limit_bytes >> 20} MiB", needed <= limit_bytes)


def driver():
    """The major version of the driver that the README requires."""
    return int(re.search(r"NVIDIA's driver \((\d+) or later\)", README.read_text()).group(1))


def check_kubernetes(path, sluice, flags, final, resumed):
    """Check each document of a manifest, and return the outputs that it writes and verifies."""
    documents = list(yaml.safe_load_all(path.read_text()))
    maps, written, verified = {}, set(), set()
    for manifest in documents:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            fits = True
        except kubernetes_validate.ValidationError as error:
            print(error)
            fits = False
        check(f"{path.name}: {manifest['kind']} fits Kubernetes {KUBERNETES}", fits)
        if manifest["kind"] == "ConfigMap":
            maps[manifest["metadata"]["name"]] = manifest["data"]
            continue
        job = manifest["spec"] if manifest["kind"] == "Job" else manifest["spec"]["jobTemplate"]["spec"]
        [container] = job["template"]["spec"]["containers"]
        words = " ".join(container["args"]).split()
        command = words[words.index("sluice") + 1 :] if "sluice" in words else words
        if command[0] == "verify":
            check(f"{path.name}: a failed verification is not retried", exit_codes(path, job, container)["FailJob"] == {9})
            verified.add(command[1].strip('"'))
        else:
            check_run(path, manifest, job, maps, sluice, flags, final, resumed)
            written.add(value(words, "--output").strip('"'))
        if manifest["kind"] == "CronJob":
            check_nights(path, manifest, container)
    return written, verified


def exit_codes(path, job, container):
    codes = {"FailJob": set(), "Ignore": set()}
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            codes[rule["action"]] |= set(rule["onExitCodes"]["values"])
            check(f"{path.name}: a rule names the container", rule["onExitCodes"]["containerName"] == container["name"])
    return codes


def check_run(path, manifest, job, maps, sluice, flags, final, resumed):
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    words = " ".join(container["args"]).split()
    check_flags(path.name, words, flags)
    same = value(words, "--num-shards") == str(job["completions"])
    check(f"{path.name}: --num-shards is the number of completions", same)

    codes = exit_codes(path, job, container)
    check(f"{path.name}: final codes end the job: {sorted(final)}", codes["FailJob"] == final)
    check(f"{path.name}: codes that resume cost no retry: {sorted(resumed)}", codes["Ignore"] == resumed)
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    rules = job["podFailurePolicy"]["rules"]
    check(f"{path.name}: a preempted pod costs no retry", rules[0] == disrupted and pod["restartPolicy"] == "Never")
    spare = pod["terminationGracePeriodSeconds"] - float(value(words, "--grace"))
    check(f"{path.name}: {spare:.0f} s from the end of --grace to SIGKILL", spare >= 10)
    if "cloud.google.com/gke-spot" in pod.get("nodeSelector", {}):
        check(f"{path.name}: --grace ends before a spot node does", float(value(words, "--grace")) <= SPOT_SECONDS - 2)
    if "nvidia.com/gpu" in container["resources"]["limits"]:
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        asked = [rule for term in terms for rule in term["matchExpressions"] if "driver" in rule["key"]]
        least = {"key": "nvidia.com/cuda.driver-version.major", "operator": "Gt", "values": [str(driver() - 1)]}
        check(f"{path.name}: nodes have the driver {driver()} or later", len(asked) == len(terms) and least in asked)
    if manifest["kind"] == "CronJob":
        check(f"{path.name}: a day without an image fails no night", "--allow-empty" in words)

    file = next(word for word in words if word.endswith(".toml"))
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume.get("configMap", {}).get("name") for volume in pod["volumes"]}
    folder, name = file.rsplit("/", 1)
    pipeline = maps.get(volumes.get(mounts.get(folder)), {}).get(name)
    check(f"{path.name}: {file} comes from a ConfigMap in it", pipeline is not None)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as written:
        written.write(pipeline or "")
        written.flush()
        limit = container["resources"]["limits"]["memory"]
        check_memory(path.name, sluice, words, written.name, int(limit.removesuffix("Gi")) << 30)


def check_nights(path, manifest, container):
    """The Job of 2026-11-10 scores the folder of the day before, and its output is verified a day later."""
    name = manifest["metadata"]["name"]
    minute = 29904600 if "run" in container["args"][0].split() else 29904600 + 27 * 60
    script = container["args"][0].replace("exec sluice", "echo")
    environment = {"JOB_NAME": f"{name}-{minute}", "PATH": "/usr/bin:/bin"}
    printed = subprocess.check_output([*container["command"], script], env=environment, text=True)
    right = re.search(r"/safety/2026-11-09\s", printed) is not None
    check(f"{path.name}: {name} of minute {minute:,} is about 2026-11-09", right)
    for end in ("rerun-2", "manual", "29904600-retry"):
        environment["JOB_NAME"] = f"{name}-{end}"
        done = subprocess.run([*container["command"], script], env=environment, capture_output=True)
        check(f"{path.name}: a Job called …-{end} is refused", done.returncode == 2 and not done.stdout)


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
    check(f"{path.name}: final codes fail the task: {sorted(final)}; others are retried", fails and same)
    # on Batch, a preemption counts as a retry
    check(f"{path.name}: preempted tasks are retried as often as Batch allows", task.max_retry_count == 10)
    check_memory(path.name, sluice, words, "pipelines/safety.toml", task.compute_resource.memory_mib << 20)
    mounted = [volume.mount_path for volume in task.volumes if volume.gcs.remote_path]
    check(f"{path.name}: {words[1]} comes from a bucket", words[1].rsplit("/", 1)[0] in mounted)
    [instance] = job.allocation_policy.instances
    [gpu] = instance.policy.accelerators
    fresh = instance.install_gpu_drivers and int(gpu.driver_version.split(".")[0]) >= driver()
    check(f"{path.name}: the driver {gpu.driver_version} is installed, {driver()} or later", fresh)
    return value(words, "--output")


def check_batch_verify(path, output):
    job = batch_v1.Job.from_json(path.read_text())
    [group] = job.task_groups
    words = list(group.task_spec.runnables[0].container.commands)
    check(f"{path.name}: verifies what gcp-batch.json writes, once", words == ["verify", output] and group.task_count == 1)
    [policy] = group.task_spec.lifecycle_policies
    check(f"{path.name}: a failed verification is not retried", set(policy.action_condition.exit_codes) == {9})


def check_dockerfile(path):
    text = path.read_text()
    version = re.search(r"^ORT_VERSION=(\S+)", (FOLDER.parent / "setup.sh").read_text(), re.M).group(1)
    libraries = re.findall(r"libonnxruntime\.so\.([\d.]+\d)", text)
    check("Dockerfile: ONNX Runtime is the one that setup.sh fetches", set(libraries) == {version})
    rust = re.search(r'^rust-version = "(\S+)"', (README.parent / "Cargo.toml").read_text(), re.M).group(1)
    check("Dockerfile: Rust is the one that Cargo.toml asks for", f"FROM rust:{rust}-" in text)
    copied = re.findall(r"^COPY (?!--from)(\S+)", text, re.M)
    missing = [name for name in copied if not (README.parent / name).exists()]
    check(f"Dockerfile: every copied file exists {missing or ''}", not missing)
    ignored = path.with_suffix(".dockerignore").read_text().splitlines()
    lost = sorted({str(name) for name in compiled_in() if is_ignored(str(name), ignored)})
    check(f"Dockerfile: every included file reaches the build {lost or ''}", not lost)


def compiled_in():
    """Files that the sources include outside of test modules."""
    top = README.parent
    for source in sorted((top / "src").rglob("*.rs")):
        if {"tests", "fuzz", "benches"} & set(source.relative_to(top).parts):
            continue
        text = source.read_text().split("#[cfg(test)]\nmod ")[0]
        for name in re.findall(r'include_(?:bytes|str)!\(\s*"([^"]+)"', text):
            yield (source.parent / name).resolve().relative_to(top)


def is_ignored(name, rules):
    """As in Docker, the last rule that matches the file or a folder above it decides."""
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
    check("the README's table has final and resumable exit codes", bool(final) and bool(resumed))
    written, verified = set(), set()
    for path in sorted(FOLDER.glob("kubernetes-*.yaml")):
        more = check_kubernetes(path, sluice, flags, final, resumed)
        written, verified = written | more[0], verified | more[1]
    check(f"Kubernetes: every written output is verified: {', '.join(sorted(written))}", written == verified)
    output = check_batch(FOLDER / "gcp-batch.json", sluice, flags, final)
    check_batch_verify(FOLDER / "gcp-batch-verify.json", output)
    check_dockerfile(FOLDER / "Dockerfile")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
