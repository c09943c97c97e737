#!/usr/bin/env bash
# binary.sh debug|release: prints the path at which cargo puts the sluice binary of that profile.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps --locked | .deps/venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
echo "$target/$1/sluice"
