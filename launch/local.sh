#!/usr/bin/env bash
# Train on this machine: every device it has, one process.
#
#   launch/local.sh [--devices=N] --config=configs/base.py [--workdir=DIR] [--config.KEY=VALUE ...]
#
# --devices=N splits a CPU into N devices, to try a mesh without the machines it is for:
#   launch/local.sh --devices=4 --config=configs/base.py --config.mesh.fsdp=2
# --dry-run prints the command and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
arguments=()
for argument in "$@"; do
  case "$argument" in
    --devices=*)
      devices="${argument#*=}"
      if ! [[ "$devices" =~ ^[1-9][0-9]*$ ]]; then
        echo "error: --devices: found '$devices'; accepted: a whole number of devices" >&2
        exit 2
      fi
      export JAX_PLATFORMS=cpu
      export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
      ;;
    --dry-run) dry_run=true ;;
    *) arguments+=("$argument") ;;
  esac
done

python="$(command -v python || command -v python3)"
[ -x .venv/bin/python ] && python=.venv/bin/python
if $dry_run; then
  for name in JAX_PLATFORMS XLA_FLAGS; do
    [ -n "${!name:-}" ] && printf '%s=%q ' "$name" "${!name}"
  done
  printf '%q ' "$python" -m crate_jax.train "${arguments[@]}"
  echo
  exit 0
fi
exec "$python" -m crate_jax.train "${arguments[@]}"
