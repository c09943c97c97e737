#!/usr/bin/env bash
# Fuzzes every reader of untrusted bytes: shards, images, pipeline files.
#
#   scripts/fuzz.sh [--seconds N] [tfrecord|tar|parquet|image|pipeline]...
#
# Each target runs for N seconds (by default 720, an hour in all), one after the other, with the address sanitizer,
# which also checks the C code (libjpeg-turbo, zstd), but not libjpeg-turbo's assembler. The fixtures are the seeds; the
# corpus stays in .deps/fuzz for the next run. A crash, a hang of 10 s or the use of 2 GiB ends the target, and the
# script exits with 1. It then prints the log of the target, and the command that keeps the input as a regression
# fixture in fixtures/fuzz/TARGET, which src/tests/hostile.rs replays.
#
# Needs a nightly compiler (rustup toolchain install nightly) and cargo-fuzz, which it installs.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

seconds=720
targets=()
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        tfrecord | tar | parquet | image | pipeline) targets+=("$1"); shift ;;
        *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
((${#targets[@]})) || targets=(tfrecord tar parquet image pipeline)

scripts/setup.sh --with build
scripts/setup.sh --peers # pyarrow writes the seeds
cargo +nightly --version || rustup toolchain install nightly --profile minimal
cargo fuzz --version || cargo install --locked cargo-fuzz

export CFLAGS_x86_64_unknown_linux_gnu="-march=x86-64-v3 -fsanitize=address"

work=.deps/fuzz
for target in "${targets[@]}"; do mkdir -p "$work/$target" "$work/crashes/$target"; done

# seeds: small images of every format, in shards of every format
images=(fixtures/codecs/{baseline,progressive,cmyk_adobe,orientation_6}.jpg fixtures/codecs/rgb.png
    fixtures/codecs/{lossy.webp,palette.gif,bilevel.bmp,lzw.tif})
for target in "${targets[@]}"; do
    case $target in
        image) find fixtures/codecs -maxdepth 1 -type f ! -name '*.json' -exec cp -t "$work/image" {} + ;;
        pipeline) cp pipelines/*.toml "$work/pipeline" ;;
        *)
            format=${target/tar/webdataset}
            for pack in "" --gzip --zstd; do
                # shellcheck disable=SC2086
                .deps/venv/bin/python scripts/shards.py --format "$format" $pack --per-shard 3 \
                    --out "$work/seeds/$target$pack" "${images[@]}" >/dev/null
                for seed in "$work/seeds/$target$pack"/*; do cp "$seed" "$work/$target/$(basename "$seed")$pack"; done
            done
            ;;
    esac
    if [[ -d fixtures/fuzz/$target ]]; then cp -t "$work/$target" "fixtures/fuzz/$target"/*; fi
done

failed=0
printf '\n'
for target in "${targets[@]}"; do
    log=$work/$target.log
    if cargo +nightly fuzz run --fuzz-dir src/fuzz --target-dir target/fuzz "$target" "$work/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
        -artifact_prefix="$work/crashes/$target/" -print_final_stats=1 >"$log" 2>&1; then
        verdict=held
    else
        verdict=FAILED
        failed=1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1 || true)
    printf '%s %s: %s inputs in %s s, %s\n' "$verdict" "$target" "${runs:-?}" "$seconds" "${covered:-?}"
    if [[ $verdict = FAILED ]]; then
        printf '  see %s; keep it: mv %s/crashes/%s/NAME fixtures/fuzz/%s/\n' "$log" "$work" "$target" "$target"
    fi
done
exit $failed
