#!/usr/bin/env bash
# Train on this machine: every device it has, in one process or in several.
#
#   launch/local.sh [--processes=N] [--devices=D] --config=configs/base.py [--workdir=DIR] [--config.KEY=VALUE ...]
#
# --devices=D splits a CPU into D devices a process, to try a mesh without the machines it is for;
# --processes=N starts N processes that find one another as the hosts of a pod do:
#   launch/local.sh --devices=4 --config=configs/base.py --config.mesh.preset=fsdp
#   launch/local.sh --processes=2 --devices=2 --config=configs/base.py --config.mesh.preset=hybrid
# --dry-run prints the commands and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
processes=1
arguments=()
whole() { # whole FLAG VALUE: the value, if it is a whole number above 0
  if ! [[ "$2" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: $1: found '$2'; accepted: a whole number above 0" >&2
    exit 2
  fi
  echo "$2"
}
for argument in "$@"; do
  case "$argument" in
    --devices=*)
      devices="$(whole --devices "${argument#*=}")"
      export JAX_PLATFORMS=cpu
      export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
      ;;
    --processes=*) processes="$(whole --processes "${argument#*=}")" ;;
    --dry-run) dry_run=true ;;
    *) arguments+=("$argument") ;;
  esac
done

python="$(command -v python || command -v python3)"
[ -x .venv/bin/python ] && python=.venv/bin/python
port=$((20000 + $$ % 20000))

# start INDEX: one of the processes, or its command line.
start() {
  local command=("$python" -m crate_jax.train ${arguments[@]+"${arguments[@]}"})
  if [ "$processes" -gt 1 ]; then
    command+=("--coordinator=127.0.0.1:$port" "--num_processes=$processes" "--process_id=$1")
  fi
  if $dry_run; then
    for name in JAX_PLATFORMS XLA_FLAGS; do
      [ -n "${!name:-}" ] && printf '%s=%q ' "$name" "${!name}"
    done
    printf '%q ' "${command[@]}"
    echo
  else
    exec "${command[@]}"
  fi
}

if $dry_run; then
  for ((i = 0; i < processes; i++)); do start "$i"; done
  exit 0
fi
[ "$processes" -eq 1 ] && start 0

children=()
for ((i = 0; i < processes; i++)); do
  start "$i" &
  children+=($!)
done
# A signal to this script is one to all of them; they agree on a step, save and end by themselves.
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
status=0
for child in "${children[@]}"; do
  # A trapped signal interrupts wait: ask again until the child is gone.
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  code=0
  wait "$child" || code=$?
  # 75 says that the run was stopped and saved; a process that failed says more.
  case "$code:$status" in 0:* | 75:[1-9]*) ;; *) status=$code ;; esac
done
exit "$status"
