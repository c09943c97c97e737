#!/usr/bin/env bash
# Runs Apache Beam's runners on this machine, to test and to measure `sluice beam` on them.
#
#   scripts/beam-runners.sh fetch [RUNNER]...  installs the runners, all by default
#   scripts/beam-runners.sh start RUNNER...    starts them, and prints RUNNER HOST:PORT, the job endpoint, of each
#   scripts/beam-runners.sh check RUNNER...    runs a small job of Beam's Python SDK on each; needs python installed
#   scripts/beam-runners.sh stop [RUNNER]...   ends them and all their processes, all by default
#   scripts/beam-runners.sh list               prints RUNNER HOST:PORT STATE of all
#
#       python         the job service of Beam's Python SDK
#       prism          Beam's local runner in Go
#       flink          Flink within its job server
#       flink-cluster  a JobManager, 2 TaskManagers with 2 slots each, and a job server
#       spark          Spark within its job server: 2 tasks at once, up to 4 attempts of each
#       spark-cluster  a master, 2 workers with 1 core each, and a job server
#
# $BEAM_RUNNERS_PORT is the first of the 50 ports that the runners use, 20000 by default. Sets of runners with different
# first ports are independent. Flink, Spark and python's job endpoint listen on loopback only. Beam's other servers (job
# endpoints, endpoints of SDK workers) listen on all addresses; no option restricts them.
#
# - The runners are in .deps/beam, and their versions in scripts/requirements/beam*.
# - .deps/beam/run/PORT has PROCESS.pid, PROCESS.log and PROCESS, the working directory, of each process. Its process
#   group has the number in PROCESS.pid, and contains the SDK workers that it starts. PROCESS.log.old is the log of the
#   process that ran before under this name.
# - start does not touch running processes. In a cluster it starts only those that are not running.

set -euo pipefail
cd "$(dirname "$0")/.."

RUNNERS=(python prism flink flink-cluster spark spark-cluster)
START_LIMIT_SECONDS=90
STOP_LIMIT_SECONDS=10

first_port=${BEAM_RUNNERS_PORT:-20000}
deps=$PWD/.deps/beam
run=$deps/run/$first_port

fail() { printf 'beam-runners: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' scripts/beam-runners.sh; }

# port RUNNER: the port of its job endpoint. The 9 ports after it, 4 after python's, belong to the runner, too.
port() {
    case $1 in
    python) echo "$first_port" ;;
    prism) echo $((first_port + 5)) ;;
    flink) echo $((first_port + 10)) ;;
    flink-cluster) echo $((first_port + 20)) ;;
    spark) echo $((first_port + 30)) ;;
    spark-cluster) echo $((first_port + 40)) ;;
    esac
}

# processes RUNNER: the names of its processes. The one with the name of the runner has the job endpoint.
processes() {
    case $1 in
    flink-cluster) echo flink-jobmanager flink-taskmanager-1 flink-taskmanager-2 flink-cluster ;;
    spark-cluster) echo spark-master spark-worker-1 spark-worker-2 spark-cluster ;;
    *) echo "$1" ;;
    esac
}

# part RUNNER: the part of setup.sh that installs it.
part() { echo "beam-${1%-cluster}"; }

# is_installed RUNNER: whether the runner has the versions that its requirements ask for, as setup.sh marks it.
is_installed() {
    case $1 in
    python) cmp -s scripts/requirements/beam.txt "$deps/python/beam.txt" ;;
    prism) cmp -s scripts/requirements/beam-prism.txt "$deps/prism/beam-prism.txt" ;;
    flink*) cmp -s scripts/requirements/beam-flink.xml "$deps/flink/beam-flink.xml" ;;
    spark*) cmp -s scripts/requirements/beam-spark.xml "$deps/spark/beam-spark.xml" ;;
    esac
}

# --- Processes ---------------------------------------------------------------------------------

# launch PROCESS COMMAND...: starts the command as the leader of a process group, unless the process runs.
launch() {
    local name=$1
    shift
    if runs "$name"; then return; fi
    end "$name" # workers that outlived it
    rm -rf "${run:?}/$name"
    mkdir "$run/$name"
    if [[ -e $run/$name.log ]]; then mv "$run/$name.log" "$run/$name.log.old"; fi
    (
        cd "$run/$name"
        TMPDIR=$PWD setsid "$@" >"$run/$name.log" 2>&1 </dev/null 9>&- & # 9 is the lock
        echo $! >"$run/$name.pid"
    )
}

# runs PROCESS: whether the leader of its group runs. The number of a process that ended may be another's by now, which
# has another working directory.
runs() {
    local pid try
    pid=$(cat "$run/$1.pid" 2>/dev/null) || return
    # the directory of a process that is executing another program cannot be read for a moment
    for try in 1 2 3 4 5; do
        if [[ "/proc/$pid/cwd" -ef $run/$1 ]]; then return; fi
        if [[ ! -e /proc/$pid ]]; then return 1; fi
        sleep 0.01
    done
    return 1
}

# group PROCESS: prints the number of its process group, if any process of it is left.
group() {
    local pid
    pid=$(cat "$run/$1.pid" 2>/dev/null) || return
    if [[ -e /proc/$pid/cwd ]] && ! runs "$1"; then return 1; fi
    kill -0 -- "-$pid" 2>/dev/null && echo "$pid"
}

# end PROCESS...: ends their process groups, and kills those that do not end within the limit.
end() {
    local name id signal deadline
    for signal in TERM KILL; do
        for name in "$@"; do
            if id=$(group "$name"); then kill -s "$signal" -- "-$id" 2>/dev/null || true; fi
        done
        deadline=$((SECONDS + STOP_LIMIT_SECONDS))
        for name in "$@"; do
            while group "$name" >/dev/null && ((SECONDS < deadline)); do sleep 0.05; done
        done
    done
    for name in "$@"; do rm -f "$run/$name.pid"; done
}

# claim PROCESS PORT: fails if another process listens on the port.
claim() {
    if ! runs "$1" && accepts "$2"; then
        fail "$1 needs port $2, where another process listens: choose other ports with BEAM_RUNNERS_PORT"
    fi
}

accepts() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
logged() { grep -q "$2" "$run/$1.log"; }

# wait_until PROCESS CONDITION...: waits until the condition holds. Fails if the process ends first, or takes too long.
wait_until() {
    local name=$1 deadline=$((SECONDS + START_LIMIT_SECONDS)) problem
    shift
    until "$@"; do
        if ! runs "$name"; then
            problem="$name ended at its start"
        elif ((SECONDS >= deadline)); then
            problem="$name did not start within $START_LIMIT_SECONDS s"
        else
            sleep 0.05
            continue
        fi
        tail -n 20 "$run/$name.log" >&2
        fail "$problem: above is the end of $run/$name.log"
    done
}

# --- Python and Prism --------------------------------------------------------------------------

start_python() {
    local port
    port=$(port python)
    claim python "$port"
    launch python "$deps/python/bin/python" -m apache_beam.runners.portability.local_job_service_main \
        --port "$port" --staging_dir "$run/python/staging"
    wait_until python accepts "$port"
}

start_prism() {
    local port
    port=$(port prism)
    claim prism "$port"
    launch prism "$deps/prism/prism" -job_port "$port" -serve_http=false
    wait_until prism accepts "$port"
}

# --- Java --------------------------------------------------------------------------------------

# The packages of the JDK that Flink and Spark reach into.
OPEN_PACKAGES=(java.{io,lang,lang.invoke,lang.reflect,net,nio,text,time} java.util{,.concurrent{,.atomic,.locks}}
    jdk.internal.ref sun.{nio.ch,nio.cs,security.action,util.calendar})
# Its level debug passes on what SDK workers of PROCESS environments print, which is lost otherwise.
PROCESS_MANAGER=org.apache.beam.runners.fnexecution.environment.ProcessManager

# use_java: sets JAVA_HOME to the JDK that has javac, which setup.sh has checked; `java` may be of another one.
use_java() {
    local javac
    if [[ -z ${JAVA_HOME:-} ]]; then
        javac=$(command -v javac) || fail "javac is missing: run scripts/setup.sh --with beam"
        JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$javac")")")
    fi
    export JAVA_HOME # for Spark's workers, which start executors
}

# class_path DIR: its classes and jars, in the order of their names on every machine.
class_path() { (LC_ALL=C && printf '%s' "$1/classes" && printf ':%s' "$1"/jars/*.jar); }

# launch_java PROCESS OPTION...: launches Java with $class_path.
launch_java() {
    local name=$1 opens=("${OPEN_PACKAGES[@]/%/=ALL-UNNAMED}")
    shift
    launch "$name" "$JAVA_HOME/bin/java" "${opens[@]/#/--add-opens=java.base/}" -cp "$class_path" \
        -XX:+UseSerialGC "-Djava.io.tmpdir=$run/$name" "$@"
}

# launch_job_server RUNNER OPTION...: launches Java with the options and those that all job servers have.
launch_job_server() {
    local runner=$1 port
    port=$(port "$runner")
    shift
    claim "$runner" "$port"
    launch_java "$runner" -Xmx768m "$@" --job-host localhost --job-port "$port" --artifact-port $((port + 1)) \
        --expansion-port $((port + 2)) --artifacts-dir "$run/$runner/artifacts"
}

# --- Flink -------------------------------------------------------------------------------------

FLINK_JOB_SERVER=org.apache.beam.runners.flink.FlinkJobServerDriver

use_flink() {
    use_java
    class_path=$(class_path "$deps/flink")
    flink_logs=(-Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS
        "-Dorg.slf4j.simpleLogger.log.$PROCESS_MANAGER=debug")
}

# flink_configuration DIR DELAY [LINES]: writes the configuration, which the lines complete. A batch job that fails
# starts again up to 3 times, each time after the delay; without such a strategy it would not.
flink_configuration() {
    mkdir -p "$1"
    cat >"$1/config.yaml" <<END
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 3
restart-strategy.fixed-delay.delay: $2
${3:-}
END
}

start_flink() {
    use_flink
    flink_configuration "$run/flink.conf" '500 ms'
    launch_job_server flink "${flink_logs[@]}" "$FLINK_JOB_SERVER" \
        --flink-master '[local]' --flink-conf-dir "$run/flink.conf"
    wait_until flink accepts "$(port flink)"
}

start_flink_cluster() {
    local conf=$run/flink-cluster.conf rpc rest number manager
    rpc=$(($(port flink-cluster) + 3))
    rest=$((rpc + 1))
    use_flink
    # - A TaskManager that is not started by Flink's own script needs the size of each part of its memory. Its heap is
    #   448 MB.
    # - Beam is on the class path of the cluster: classes of jobs must come from there.
    # - A job of parallelism 2 uses both TaskManagers.
    # - The loss of a killed TaskManager is noticed after 2 heartbeats. A job restarts only after that: attempts fail as
    #   long as they are assigned to the dead TaskManager.
    flink_configuration "$conf" '2 s' "\
jobmanager.rpc.address: localhost
jobmanager.rpc.port: $rpc
jobmanager.bind-host: 127.0.0.1
rest.address: localhost
rest.bind-address: 127.0.0.1
rest.port: $rest
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.numberOfTaskSlots: 2
taskmanager.cpu.cores: 1
taskmanager.memory.framework.heap.size: 64m
taskmanager.memory.task.heap.size: 384m
taskmanager.memory.framework.off-heap.size: 64m
taskmanager.memory.task.off-heap.size: 0m
taskmanager.memory.network.min: 32m
taskmanager.memory.network.max: 32m
taskmanager.memory.managed.size: 64m
taskmanager.memory.jvm-metaspace.size: 128m
taskmanager.memory.jvm-overhead.min: 64m
taskmanager.memory.jvm-overhead.max: 64m
taskmanager.load-balance.mode: slots
heartbeat.interval: 500
classloader.resolve-order: parent-first"
    claim flink-jobmanager "$rpc"
    claim flink-jobmanager "$rest"
    launch_java flink-jobmanager -Xmx384m "${flink_logs[@]}" \
        org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint --configDir "$conf"
    for number in 1 2; do
        launch_java "flink-taskmanager-$number" -Xmx448m -XX:MaxDirectMemorySize=160m "${flink_logs[@]}" \
            org.apache.flink.runtime.taskexecutor.TaskManagerRunner --configDir "$conf"
    done
    launch_job_server flink-cluster "${flink_logs[@]}" "$FLINK_JOB_SERVER" \
        --flink-master "localhost:$rest" --flink-conf-dir "$conf"
    wait_until flink-jobmanager accepts "$rest"
    for number in 1 2; do
        manager=flink-taskmanager-$number
        wait_until "$manager" logged "$manager" 'Successful registration at resource manager'
    done
    wait_until flink-cluster accepts "$(port flink-cluster)"
}

# --- Spark -------------------------------------------------------------------------------------

SPARK_JOB_SERVER=org.apache.beam.runners.spark.SparkJobServerDriver

use_spark() {
    use_java
    export SPARK_LOCAL_IP=127.0.0.1 SPARK_SCALA_VERSION=2.12 # required outside a standard Spark installation
    export SPARK_HOME=$deps/spark SPARK_CONF_DIR=$run/spark.conf # executors have the jars of the one, and the other
    class_path=$SPARK_CONF_DIR:$(class_path "$SPARK_HOME")
    mkdir -p "$SPARK_CONF_DIR"
    cat >"$SPARK_CONF_DIR/log4j2.properties" <<END
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss.SSS} [%t] %p %c{1} %m%n%ex
logger.workers.name = $PROCESS_MANAGER
logger.workers.level = debug
END
}

start_spark() {
    use_spark
    # local[2] alone would mean one attempt
    launch_job_server spark -Dspark.ui.enabled=false "$SPARK_JOB_SERVER" --spark-master-url='local[2,4]'
    wait_until spark accepts "$(port spark)"
}

start_spark_cluster() {
    local master number worker url
    master=$(($(port spark-cluster) + 3))
    url=spark://127.0.0.1:$master
    use_spark
    claim spark-master "$master"
    launch_java spark-master -Xmx256m org.apache.spark.deploy.master.Master --host 127.0.0.1 --port "$master" \
        --webui-port $((master + 1))
    wait_until spark-master accepts "$master" # a worker that finds no master waits 10 s before it tries again
    for number in 1 2; do
        worker=spark-worker-$number
        launch_java "$worker" -Xmx256m org.apache.spark.deploy.worker.Worker --host 127.0.0.1 \
            --webui-port $((master + 1 + number)) --cores 1 --memory 900M --work-dir "$run/$worker" "$url"
    done
    launch_job_server spark-cluster -Dspark.ui.enabled=false -Dspark.driver.host=127.0.0.1 \
        -Dspark.driver.bindAddress=127.0.0.1 -Dspark.executor.cores=1 -Dspark.executor.memory=600m \
        "$SPARK_JOB_SERVER" --spark-master-url="$url"
    for number in 1 2; do
        worker=spark-worker-$number
        wait_until "$worker" logged "$worker" 'Successfully registered with master'
    done
    wait_until spark-cluster accepts "$(port spark-cluster)"
}

# --- Commands ----------------------------------------------------------------------------------

fetch() {
    local runner
    for runner in "$@"; do
        if ! is_installed "$runner"; then scripts/setup.sh --with "$(part "$runner")"; fi
    done
}

start() {
    for runner in "$@"; do
        is_installed "$runner" || fail "$runner is not installed: run scripts/setup.sh --with $(part "$runner")"
        # shellcheck disable=SC2046 # names of processes are words
        trap 'end $(processes "$runner")' EXIT
        "start_${runner//-/_}"
        trap - EXIT
        echo "$runner localhost:$(port "$runner")"
    done
}

stop() {
    local runner names=()
    for runner in "$@"; do
        # shellcheck disable=SC2207 # names of processes are words
        names+=($(processes "$runner"))
    done
    end "${names[@]}"
}

list() {
    local runner state
    for runner in "${RUNNERS[@]}"; do
        if runs "$runner"; then state=running; elif is_installed "$runner"; then state=stopped; else state=missing; fi
        echo "$runner localhost:$(port "$runner") $state"
    done
}

check() {
    local runner log
    is_installed python || fail "check needs Beam for Python: run scripts/setup.sh --with beam-python"
    for runner in "$@"; do
        runs "$runner" || fail "$runner does not run: start it first"
        # it also logs connections that the runner closes at the end of a job
        if ! log=$("$deps/python/bin/python" scripts/beam/check.py "localhost:$(port "$runner")" 2>&1); then
            fail "$runner cannot run a job: $log"
        fi
        echo "$runner has run a job"
    done
}

command=${1:-}
shift || true
for runner in "$@"; do
    [[ " ${RUNNERS[*]} " == *" $runner "* ]] || fail "unknown runner '$runner': there are ${RUNNERS[*]}"
done
# ports from 32768 on are ephemeral: the system assigns them
if [[ ! $first_port =~ ^[1-9][0-9]{3,4}$ ]] || ((first_port < 1024 || first_port > 32768 - 50)); then
    fail "BEAM_RUNNERS_PORT is '$first_port', it must be from 1024 to $((32768 - 50))"
fi
mkdir -p "$run"

case $command in
start | check)
    (($#)) || fail "$command needs a runner: ${RUNNERS[*]}"
    ;;
fetch | stop)
    if (($# == 0)); then set -- "${RUNNERS[@]}"; fi
    ;;
list) (($# == 0)) || fail "list takes no runner" ;;
-h | --help)
    usage
    exit
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
if [[ $command == start || $command == stop ]]; then
    exec 9>"$run/.lock" # one at a time
    flock 9
fi
"$command" "$@"
