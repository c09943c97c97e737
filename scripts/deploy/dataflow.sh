#!/usr/bin/env bash
# Scores images on Google Dataflow: submits scripts/beam/score.py, whose transform runs in sluice's image.
#
#   PROJECT=… REGION=… BUCKET=… IMAGE=… scripts/deploy/dataflow.sh URIS PIPELINE COUNTS [OPTION OF DATAFLOW]...
#
# - URIS (gs://…) has one URI of shards, a folder or a glob in each line. PIPELINE is a pipeline file on this machine,
#   with the output in its output.uri (gs://…). COUNTS (gs://…) is written: the number of rows by status.
# - Dataflow takes jobs from Beam's SDKs only, through its own API, so `sluice beam submit` cannot reach it. A pipeline of
#   Beam's Python SDK can, with sluice's transform in it: `sluice beam expansion-service`, which runs here while the job
#   is submitted, provides the transform, its image and the model.
# - IMAGE is the target `beam` of the Dockerfile, or `gpu`, in Artifact Registry. Every worker of Dataflow runs one
#   container of it, besides those of Python. Its sluice must be the version of the one here ($SLUICE).
# - Python's version must be one for which Beam has an image (3.10 to 3.14); the environment needs
#   apache-beam[gcp]==2.77.0. $PYTHON is its interpreter.
# - The workers run as sluice@$PROJECT.iam.gserviceaccount.com: roles/dataflow.worker, read access to the input and to
#   the image, roles/storage.objectUser on the bucket and on the output.
# - Their number is fixed: Dataflow would scale by the bytes of its collections, which are names of shards. Memory of a
#   worker: what `sluice check` prints, the model, and Python.
# - To resume a job that failed or was cancelled, run the same command again, or `sluice run`.
# - Afterwards: sluice verify gs://… of output.uri.
#
# Untested on Dataflow. The job description and the staged files have been made and looked at, with an emulator of Cloud
# Storage in the place of $BUCKET, and the image's flags have been tried with Beam's own job service, which passes the
# same ones.
set -euo pipefail
cd "$(dirname "$0")/../.."

if (($# < 3)); then
    sed -n '2,/^$/s/^# \{0,1\}//p' scripts/deploy/dataflow.sh >&2
    exit 2
fi
for variable in PROJECT REGION BUCKET IMAGE; do
    [[ -n ${!variable:-} ]] || { echo "dataflow: $variable is not set" >&2; exit 2; }
done
uris=$1 pipeline=$2 counts=$3
shift 3
port=${PORT:-8097}
service=(beam expansion-service "--listen=localhost:$port" "--environment=docker=$IMAGE")

accepts() { (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null; }
if accepts; then
    echo "dataflow: another process listens on port $port: choose another one with PORT" >&2
    exit 2
fi
"${SLUICE:-sluice}" "${service[@]}" &
trap 'kill %1 2>/dev/null; wait' EXIT
until accepts; do
    kill -0 %1 2>/dev/null || { echo "dataflow: the expansion service has ended" >&2; exit 1; }
    sleep 0.1
done
"${PYTHON:-python3}" scripts/beam/score.py "$uris" "$pipeline" "localhost:$port" "$counts" \
    --runner=DataflowRunner \
    --project="$PROJECT" \
    --region="$REGION" \
    --temp_location="gs://$BUCKET/dataflow/tmp" \
    --staging_location="gs://$BUCKET/dataflow/staging" \
    --service_account_email="sluice@$PROJECT.iam.gserviceaccount.com" \
    --machine_type=n2-standard-4 \
    --disk_size_gb=50 \
    --num_workers=8 \
    --autoscaling_algorithm=NONE \
    "$@"
