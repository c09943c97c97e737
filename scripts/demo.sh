#!/usr/bin/env bash
# Takes a fresh clone to scored photos: installs what is missing, builds, scores the bundled photos
# with EfficientNet-Lite0, and shows the results. A second run takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

scripts/setup.sh
cargo build --release --locked
sluice=$(scripts/binary.sh release)

shards=.deps/demo/shards out=.deps/demo/scored
if [ ! -e "$shards/.made" ]; then
    rm -rf "$shards"
    .deps/venv/bin/python scripts/shards.py --format webdataset --out "$shards" --per-shard 4 fixtures/photos
    touch "$shards/.made"
fi
rm -rf "$out"

printf '\n== sluice run pipelines/photos.toml\n'
"$sluice" run pipelines/photos.toml --input "$shards/*.tar" --output "$out"

printf '\n== photo, top label, score: sluice show %s --rows 14\n' "$out"
"$sluice" show "$out" --rows 14

cat <<END

== score your own photos
$sluice run pipelines/photos.toml --input FOLDER --output out/mine

== query the output with DuckDB (duckdb.org)
duckdb -c "SELECT image_id, top1_label, round(top1_score, 3) AS score
           FROM '$out/predictions/*.parquet' ORDER BY score DESC"
END
