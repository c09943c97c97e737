#!/usr/bin/env bash
# Scores images on Google Dataflow: submits scripts/beam/score.py, whose transform runs in sluice's image.
#
#   PROJECT=… REGION=… BUCKET=… IMAGE=… scripts/deploy/dataflow.sh URIS PIPELINE COUNTS [OPTION OF DATAFLOW]...
#
# - URIS (gs://…) is a text file with one URI in each line: shards, folders or globs. PIPELINE is a pipeline file on
#   this machine; its output.uri (gs://…) is the output. COUNTS (gs://…) is a text file that the job writes: rows by
#   status.
# - Dataflow accepts jobs only from Beam's SDKs, through its own API, so `sluice beam submit` cannot submit to it. A
#   pipeline of Beam's Python SDK can contain sluice's transform. `sluice beam expansion-service` provides the
#   transform, its image and the model. It runs on this machine until the job has ended.
# - IMAGE is the target `beam` of the Dockerfile, or `gpu`, in Artifact Registry. Dataflow runs one container of it on
#   each worker, beside those of Python. Sluice on this machine ($SLUICE) must have the same version.
# - Python ($PYTHON) needs apache-beam[gcp]==2.77.0, and one of the versions 3.10 to 3.14.
# - The workers run as sluice@PROJECT.iam.gserviceaccount.com, with roles/dataflow.worker, read access to the input and
#   to the image, and roles/storage.objectUser on BUCKET and on the bucket of the output.
# - The number of workers is fixed, because Dataflow scales by the size of collections, and these contain only names of
#   shards. A worker needs memory for the bound that `sluice check` prints, the model, and Python.
# - If the job fails or is cancelled, the same command resumes the run. When it has succeeded, run
#   `sluice verify` on the output.
#
# Not tested on Dataflow. Tested with an emulator of Cloud Storage: Beam's Dataflow runner makes the job description, in
# which both images are, and stages the model. Workers with the flags that Dataflow passes were tested on Beam's
# Python job service, which passes the same.
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
