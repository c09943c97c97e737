#!/usr/bin/env bash
# Installs what the tests need. Then checks imports, format, lints, dependencies, docs, the manifests under
# scripts/deploy, parity with Python and an output in the tools of analysts, and runs all tests: those of the engines
# with datacenter TensorRT, too, and those of Beam's runners.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh --peers
scripts/setup.sh --with tensorrt --with servers --with deny --with beam --deploy

for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done

step() { printf '\n== %s\n' "$*"; "$@"; }
step scripts/check_imports.py --self-test
step scripts/check_imports.py
step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
step cargo clippy --locked --test torture --test gpu_engines -- -D warnings # not built by cargo test
step cargo clippy --locked --all-targets --no-default-features --features datacenter -- -D warnings # without Beam
step .deps/deny/cargo-deny --offline check licenses bans sources
advisories=https://github.com/rustsec/advisory-db
if git ls-remote --exit-code "$advisories" HEAD >/dev/null 2>&1; then
    step .deps/deny/cargo-deny check advisories
else
    printf '\n== advisories are not checked: %s cannot be reached\n' "$advisories"
fi
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --no-deps
step cargo test --locked --no-run # also builds the binary; cargo build would build its dependencies with other features
sluice=$(scripts/binary.sh debug)
step .deps/deploy/bin/python scripts/deploy/check.py --sluice "$sluice"
step .deps/venv/bin/python scripts/parity.py --sluice "$sluice"
scored=$(mktemp -d)
trap 'rm -rf "$scored"' EXIT
step "$sluice" run pipelines/photos.toml --output "$scored/photos"
step .deps/venv/bin/python scripts/analyst.py "$scored/photos" --records 14 \
    --labels fixtures/photos/expected.json
step cargo test --locked --no-default-features --features datacenter --lib engine -- --include-ignored
step cargo test --locked -- --include-ignored
