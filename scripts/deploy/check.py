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
- Images of sluice are targets of the Dockerfile.
- For Flink: `sluice beam` knows every argument. The job server is of the version that the tests run, and Flink of the
  version in the job server's name. Selectors match pods, and addresses match Services and pools. The job fills the
  slots. Flink's memory fits into its containers.
- `sluice beam expansion-service` knows the arguments of the script for Dataflow.
- The build context of the image has all files that the sources include. The image takes the flags of Beam's runners.
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
        if manifest["kind"] not in ("Job", "CronJob"):
            continue
        job = manifest["spec"] if manifest["kind"] == "Job" else manifest["spec"]["jobTemplate"]["spec"]
        [container] = job["template"]["spec"]["containers"]
        words = " ".join(container["args"]).split()
        command = words[words.index("sluice") + 1 :] if "sluice" in words else words
        if command[0] == "verify":
            check(f"{path.name}: a failed verification is not retried", exit_codes(path, job, container)["FailJob"] == {9})
            verified.add(command[1].strip('"'))
        elif command[:2] == ["beam", "submit"]:
            check_submit(path, job, maps, sluice, final, resumed)
            written.add(value(words, "--output"))
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

    check_retries(path, job, final, resumed)
    check_grace(path, pod, words)
    if "cloud.google.com/gke-spot" in pod.get("nodeSelector", {}):
        check(f"{path.name}: --grace ends before a spot node does", float(value(words, "--grace")) <= SPOT_SECONDS - 2)
    if "nvidia.com/gpu" in container["resources"]["limits"]:
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        asked = [rule for term in terms for rule in term["matchExpressions"] if "driver" in rule["key"]]
        least = {"key": "nvidia.com/cuda.driver-version.major", "operator": "Gt", "values": [str(driver() - 1)]}
        check(f"{path.name}: nodes have the driver {driver()} or later", len(asked) == len(terms) and least in asked)
    if manifest["kind"] == "CronJob":
        check(f"{path.name}: a day without an image fails no night", "--allow-empty" in words)

    check_pipeline(path, pod, maps, sluice, words, container["resources"]["limits"]["memory"])


def check_retries(path, job, final, resumed):
    pod = job["template"]["spec"]
    codes = exit_codes(path, job, pod["containers"][0])
    check(f"{path.name}: final codes end the job: {sorted(final)}", codes["FailJob"] == final)
    check(f"{path.name}: codes that resume cost no retry: {sorted(resumed)}", codes["Ignore"] == resumed)
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    rules = job["podFailurePolicy"]["rules"]
    check(f"{path.name}: a preempted pod costs no retry", rules[0] == disrupted and pod["restartPolicy"] == "Never")


def check_grace(path, pod, words):
    spare = pod["terminationGracePeriodSeconds"] - float(value(words, "--grace"))
    check(f"{path.name}: {spare:.0f} s from the end of --grace to SIGKILL", spare >= 10)


def check_pipeline(path, pod, maps, sluice, words, limit):
    """Check the pipeline file of a pod's only container, and that the memory limit of the container that scores
    covers it."""
    file = next(word for word in words if word.endswith(".toml"))
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume.get("configMap", {}).get("name") for volume in pod["volumes"]}
    folder, name = file.rsplit("/", 1)
    pipeline = maps.get(volumes.get(mounts.get(folder)), {}).get(name)
    check(f"{path.name}: {file} comes from a ConfigMap in it", pipeline is not None)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as written:
        written.write(pipeline or "")
        written.flush()
        check_memory(path.name, sluice, words, written.name, mebibytes(limit) << 20)


def mebibytes(quantity):
    """A quantity of memory as Kubernetes and Flink write it."""
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi|m)", quantity).groups()
    return int(number) * (1024 if unit == "Gi" else 1)


def check_submit(path, job, maps, sluice, final, resumed):
    """Check a Job that submits to the cluster of kubernetes-flink.yaml."""
    cluster = FlinkCluster()
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    words = container["args"]
    check_arguments(path.name, sluice, words)
    check_retries(path, job, final, resumed)
    worker = cluster.container("flink-taskmanager", "sluice")
    check_pipeline(path, pod, maps, sluice, words, worker["resources"]["limits"]["memory"])
    ports = cluster.service_ports()
    check(f"{path.name}: the job endpoint is a Service of the cluster", value(words, "--job-endpoint") in ports)
    admitted = cluster.one("NetworkPolicy")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    labels = job["template"]["metadata"]["labels"]
    check(f"{path.name}: the cluster admits its pod", admitted.items() <= labels.items())
    pool = f"external={value(worker['args'], '--pool')}"
    check(f"{path.name}: workers come from the pools of the cluster", value(words, "--environment") == pool)
    slots = cluster.slots()
    check(f"{path.name}: the job fills the {slots} slots", value(words, "--parallelism") == str(slots))


class FlinkCluster:
    """The manifest of the Flink cluster."""

    def __init__(self):
        self.path = FOLDER / "kubernetes-flink.yaml"
        self.documents = list(yaml.safe_load_all(self.path.read_text()))
        lines = self.one("ConfigMap")["data"]["properties"].splitlines()
        self.properties = dict(line.split(": ", 1) for line in lines)

    def all(self, kind):
        return [manifest for manifest in self.documents if manifest["kind"] == kind]

    def one(self, kind, name=None):
        [manifest] = [each for each in self.all(kind) if name in (None, each["metadata"]["name"])]
        return manifest

    def pod(self, name):
        return self.one("Deployment", name)["spec"]["template"]["spec"]

    def container(self, deployment, name):
        [container] = [each for each in self.pod(deployment)["containers"] if each["name"] == name]
        return container

    def service_ports(self):
        """HOST:PORT of all Services."""
        services = self.all("Service")
        return {f"{each['metadata']['name']}:{port['port']}" for each in services for port in each["spec"]["ports"]}

    def slots(self):
        replicas = self.one("Deployment", "flink-taskmanager")["spec"]["replicas"]
        return replicas * int(self.properties["taskmanager.numberOfTaskSlots"])


# Linux assigns ports from here on to connections, and to the servers that a TaskManager starts for its workers.
FIRST_EPHEMERAL_PORT = 32768


def check_flink(sluice):
    cluster = FlinkCluster()
    name = cluster.path.name
    labels = {}
    for deployment in cluster.all("Deployment"):
        target, spec = deployment["metadata"]["name"], deployment["spec"]
        labels[target] = spec["template"]["metadata"]["labels"]
        own = spec["selector"]["matchLabels"].items() <= labels[target].items()
        check(f"{name}: the Deployment {target} selects its own pods", own)
    for service in cluster.all("Service"):
        target, spec = service["metadata"]["name"], service["spec"]
        found = [deployment for deployment in labels if spec["selector"].items() <= labels[deployment].items()]
        check(f"{name}: the Service {target} selects the pods of the Deployment {target}", found == [target])
        [container] = cluster.pod(target)["containers"]
        listening = {port["containerPort"] for port in container["ports"]}
        check(f"{name}: the pods listen on its ports", {port["port"] for port in spec["ports"]} <= listening)

    pod, worker = cluster.pod("flink-taskmanager"), cluster.container("flink-taskmanager", "sluice")
    check_arguments(name, sluice, worker["args"])
    check_grace(cluster.path, pod, worker["args"])
    host, port = value(worker["args"], "--pool").split(":")
    is_right = host == "localhost" and int(port) < FIRST_EPHEMERAL_PORT
    check(f"{name}: a pool listens for its own pod, on a port that no other program gets", is_right)
    mounted = {mount["mountPath"] for mount in worker["volumeMounts"]}
    check(f"{name}: workers can store models", "/tmp" in mounted)

    server = cluster.container("flink-job-server", "job-server")
    master = value(server["args"], "--flink-master")
    check(f"{name}: the job server finds Flink at {master}", master in cluster.service_ports())
    tested = (FOLDER.parent / "requirements" / "beam-flink.xml").read_text()
    flink, beam = re.search(r"<artifactId>beam-runners-flink-(.*)</artifactId>\s*<version>(.*)<", tested).groups()
    image = f"apache/beam_flink{flink}_job_server:{beam}"
    check(f"{name}: the job server is the one that the tests run, {image}", server["image"] == image)
    for deployment in ("jobmanager", "taskmanager"):
        container = cluster.container(f"flink-{deployment}", deployment)
        check(f"{name}: the {deployment} has Flink {flink}", container["image"].startswith(f"flink:{flink}."))
        [address] = [entry["value"] for entry in container["env"] if entry["name"] == "JOB_MANAGER_RPC_ADDRESS"]
        check(f"{name}: the {deployment} knows the JobManager", f"{address}:6123" in cluster.service_ports())
        total = mebibytes(cluster.properties[f"{deployment}.memory.process.size"])
        limit = mebibytes(container["resources"]["limits"]["memory"])
        check(f"{name}: the {deployment} has {total} MiB of {limit} MiB", total <= limit)
    spaced = [key for key, text in cluster.properties.items() if " " in text]
    check(f"{name}: no property has a space {spaced or ''}", not spaced)
    check(f"{name}: a job that fails starts again", cluster.properties["restart-strategy.type"] == "fixed-delay")


def check_dataflow(sluice):
    path = FOLDER / "dataflow.sh"
    [words] = re.findall(r"^service=\((.*)\)$", path.read_text(), re.M)
    words = words.replace('"', "").replace("$port", "8097").split()
    check_arguments(path.name, sluice, words)
    check(f"{path.name}: is Bash", subprocess.run(["bash", "-n", path]).returncode == 0)


def check_arguments(name, sluice, words):
    """`--help` makes sluice read the arguments before it, and do nothing else."""
    done = subprocess.run([sluice, *words, "--help"], capture_output=True, text=True)
    check(f"{name}: `sluice {' '.join(words[:2])}` knows every argument {done.stderr}", done.returncode == 0)


def check_images():
    """Every image of sluice is a target of the Dockerfile."""
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (FOLDER / "Dockerfile").read_text(), re.M))
    for path in sorted(FOLDER.iterdir()):
        if path.name.startswith("Dockerfile") or path.suffix == ".py":
            continue
        used = set(re.findall(r"/sluice:([\w.-]+)", path.read_text()))
        check(f"{path.name}: images of sluice are targets of the Dockerfile: {sorted(used)}", used <= targets)


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
    entry = re.findall(r"^ENTRYPOINT (.*)$", text, re.M)
    check("Dockerfile: images start sluice with their arguments", set(entry) == {'["sluice"]'})
    lost = sorted({str(name) for name in compiled_in() if is_ignored(str(name), ignored)})
    check(f"Dockerfile: every included file reaches the build {lost or ''}", not lost)


# What runners pass to their workers: Flink's and Spark's, and Dataflow's and the Python SDK's. Port 1 is closed.
RUNNER_FLAGS = [
    ["--id=1-1", "--provision_endpoint=localhost:1", "--semi_persist_dir=/tmp"],
    [
        "--id=worker_0",
        "--logging_endpoint=localhost:2",
        "--control_endpoint=localhost:3",
        "--artifact_endpoint=localhost:4",
        "--provision_endpoint=localhost:1",
        "--semi_persist_dir=/var/opt/google",
        "--unknown=1",
    ],
]


def check_worker(sluice):
    """Started as a runner starts the image, the binary calls the runner's provision service first."""
    for flags in RUNNER_FLAGS:
        done = subprocess.run([sluice, *flags], capture_output=True, text=True, timeout=60)
        called = done.returncode == 1 and "provision service at localhost:1" in done.stderr
        check(f"Dockerfile: sluice is a worker, if started with {len(flags)} flags of a runner", called)


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
    check_flink(sluice)
    check_dataflow(sluice)
    check_dockerfile(FOLDER / "Dockerfile")
    check_worker(sluice)
    check_images()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
