#!/usr/bin/env bash
# Everything the test suite needs, then format, lints, docs, parity with Python, and all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh --peers

for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done

step() { printf '\n== %s\n' "$*"; "$@"; }
step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --no-deps
step cargo build --locked
step .deps/venv/bin/python scripts/parity.py --sluice "$(scripts/binary.sh debug)"
step cargo test --locked
