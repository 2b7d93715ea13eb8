#!/bin/bash
# A training on all hosts of a TPU pod slice, started from any machine with gcloud, and again until it is done:
#   launch/tpu_pod.sh TPU ZONE CONFIG gs://BUCKET/RUN [FLAG...]
# jtransfer is installed on all hosts, and the config lies in their home directories. See docs/launching.md.
set -u
tpu=$1 zone=$2 config=$3 workdir=$4
shift 4

command=$(printf '%q ' jtransfer train --config="$config" --workdir="$workdir" "$@")
said=$(mktemp)
trap 'rm -f "$said"' EXIT

for ((try = 0; try < 100; try++)); do
  # Each host says its exit code, as gcloud has one for all of them.
  gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
    --command="$command; echo jtransfer ended with \$?" | tee "$said"
  codes=" $(sed -n 's/.*jtransfer ended with //p' "$said" | sort -u | tr '\n' ' ')"
  [[ $codes == " 0 " ]] && exit 0
  for final in 1 2 74 130; do
    [[ $codes == *" $final "* ]] && exit "$final"
  done
  # A slice that was taken away comes back with the queued resource that asked for it.
  until [[ $(gcloud compute tpus tpu-vm describe "$tpu" --zone="$zone" --format='value(state)') == READY ]]; do
    sleep 60
  done
  sleep 10
done
exit 75
