#!/usr/bin/env bash
# Train on a Cloud TPU slice: one machine of 4 or 8 chips, or a pod of many.
#
#   launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [...] [-- --config=FILE.py --workdir=DIR ...]
#
# Actions
#   create    ask for the slice (a queued resource) and wait until it is there
#   install   copy this checkout to every host and install it there
#   run       the training command on every host at once; hosts find one another by themselves
#   delete    give the slice back
#   train     all of the above, again and again until the run is finished: a preempted slice is asked for anew, and the run
#             goes on where it stopped
# Options
#   --type=v5litepod-16   the accelerator type; v5litepod-N, v6e-N, v5p-N (cores), v4-N (cores)
#   --runtime=VERSION     the VM image; by default the one that goes with the type
#   --bucket=BUCKET       a Cloud Storage bucket, mounted at ~/bucket on every host; put the workdir in it
#   --spot                preemptible, cheaper
#   --dry-run             print the commands and stop
#
# Example
#   launch/tpu_pod.sh train --name=crate --zone=us-west4-a --type=v5litepod-256 --spot --bucket=my-bucket -- \
#     --config=configs/crate.py:base --workdir=bucket/crate-base --config.mesh.preset=fsdp
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $1" >&2; exit 2; }

action="${1:-}"
[ $# -gt 0 ] && shift
name='' zone='' type='v5litepod-16' runtime='' bucket='' spot=false dry_run=false
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --bucket=*) bucket="${1#*=}" ;;
    --spot) spot=true ;;
    --dry-run) dry_run=true ;;
    --) shift; arguments=("$@"); break ;;
    *) fail "unknown option $1; accepted: --name --zone --type --runtime --bucket --spot --dry-run, then -- and the flags of crate_jax.train" ;;
  esac
  shift
done
case "$action" in
  create | install | run | delete | train) ;;
  *) fail "unknown action '$action'; accepted: create, install, run, delete, train" ;;
esac
[ -n "$name" ] || fail "--name is required"
[ -n "$zone" ] || fail "--zone is required"
if [ "$action" = run ] || [ "$action" = train ]; then
  [[ " ${arguments[*]:-}" =~ \ --workdir[=\ ] ]] || fail "the flags of crate_jax.train are missing: -- --config=… --workdir=…"
fi
if [ -z "$runtime" ]; then
  case "$type" in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) fail "--type: found '$type'; accepted: v4-N, v5litepod-N, v5p-N, v6e-N, or any type with --runtime beside it" ;;
  esac
fi

# Run a command, or print it so that it could be pasted.
perform() {
  if $dry_run; then printf '%q ' "$@"; echo; else "$@"; fi
}
on_all_hosts() {
  perform gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$1"
}
state() {
  gcloud compute tpus queued-resources describe "$name" "--zone=$zone" '--format=value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local command=(gcloud compute tpus queued-resources create "$name" "--node-id=$name" "--zone=$zone"
    "--accelerator-type=$type" "--runtime-version=$runtime")
  $spot && command+=(--spot)
  perform "${command[@]}"
  if $dry_run; then return; fi
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED) fail "the queued resource is $(state)" ;; esac
    sleep 30
  done
}

install() {
  local archive=crate_jax.tar.gz
  perform git archive "--output=/tmp/$archive" HEAD
  perform gcloud compute tpus tpu-vm scp "/tmp/$archive" "$name:$archive" "--zone=$zone" --worker=all
  on_all_hosts "mkdir -p crate_jax && tar -xzf $archive -C crate_jax && cd crate_jax && python3 -m venv .venv && .venv/bin/pip install -q '.[tpu]'"
  [ -z "$bucket" ] || on_all_hosts \
    "command -v gcsfuse || { sudo apt-get update -q && sudo apt-get install -yq gcsfuse; }; mkdir -p crate_jax/bucket && (mountpoint -q crate_jax/bucket || gcsfuse --implicit-dirs $bucket crate_jax/bucket)"
}

run() {
  on_all_hosts "cd crate_jax && .venv/bin/python -m crate_jax.train$(printf ' %q' "${arguments[@]}")"
}

delete() { perform gcloud compute tpus queued-resources delete "$name" "--zone=$zone" --force --quiet; }

train() {
  if $dry_run; then create; install; run; delete; return; fi
  while true; do
    if [ "$(state)" != ACTIVE ]; then
      [ "$(state)" = NONE ] || delete
      create
    fi
    install
    # A run that is told to stop saves and ends with 75; a slice that is taken away cuts the connection. Both go on from there.
    local code=0
    run || code=$?
    case "$code" in
      0) break ;;
      75) ;;
      *) [ "$(state)" != ACTIVE ] || fail "the run failed with exit code $code on a slice that is still there; see above" ;;
    esac
    echo "stopped before the end of the run; going on"
    sleep 60
  done
  delete
}

"$action"
