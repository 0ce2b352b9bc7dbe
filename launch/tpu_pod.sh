#!/usr/bin/env bash
# Trains on a Cloud TPU slice of many hosts. One step per command, each safe to repeat:
#
#   launch/tpu_pod.sh create | install | prepare --source=.. | train --config=.. | watch | stop | delete
#
# Settings come from the environment; every worker mounts SHARED, which holds data and runs:
#   NAME=rec2pm ZONE=us-west4-a TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite
#   SHARED=10.0.0.2:/share (an NFS export, for example Filestore)  RUN=industrial  SPOT=1
set -euo pipefail

NAME=${NAME:-rec2pm}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-256}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
RUN=${RUN:-industrial}
MOUNT=/mnt/rec2pm
RETRIES=${RETRIES:-20} # continuations after a preemption or a lost host

usage() {
  sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'
  exit 1
}

on() { # on WORKER COMMAND: on one worker (a number) or on all
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

quoted() { # arguments as one string that the remote shells split again
  [ "$#" -eq 0 ] || printf '%q ' "$@"
}

state() { # READY, PREEMPTED, ..; empty where there is no such slice
  gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2> /dev/null \
    || true
}

create() {
  case $(state) in
    READY) return 0 ;;
    "") ;;
    *) delete ;; # a preempted slice cannot be used, but keeps its name
  esac
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --version="$VERSION" ${SPOT:+--spot}
}

install() {
  : "${SHARED:?set SHARED=HOST:/EXPORT, a directory that every worker can mount}"
  on all "mountpoint -q $MOUNT || { sudo apt-get install -qq -y nfs-common &&
    sudo mkdir -p $MOUNT && sudo mount -t nfs $SHARED $MOUNT && sudo chmod a+rwx $MOUNT; }"
  # The working tree as it is, so that every worker runs the same code.
  git archive --format=tar.gz --output=/tmp/rec2pm_jax.tar.gz HEAD
  gcloud compute tpus tpu-vm scp /tmp/rec2pm_jax.tar.gz "$NAME": --zone="$ZONE" --worker=all
  on all "mkdir -p rec2pm_jax && tar -xzf rec2pm_jax.tar.gz -C rec2pm_jax && cd rec2pm_jax &&
    python3 -m venv .venv && .venv/bin/pip install --quiet --editable '.[tpu]'"
}

prepare() { # once, by worker 0, for all
  on 0 "cd rec2pm_jax && .venv/bin/python -m launch.prepare --output_dir=$MOUNT/data $(quoted "$@")"
}

train() {
  local code try command
  command="cd rec2pm_jax && .venv/bin/python -m launch.train --distributed --data=$MOUNT/data \
--workdir=$MOUNT/runs/$RUN --compilation_cache=$MOUNT/cache $(quoted "$@") 2>> ~/$RUN.log >> ~/$RUN.log"
  for ((try = 0; try <= RETRIES; try++)); do
    code=0
    on all "$command" || code=$?
    case $code in
      0) echo "complete: $MOUNT/runs/$RUN"; return 0 ;;
      1) echo "an error: $0 watch" >&2; return 1 ;;
    esac
    # 75: SIGTERM, saved; 76: a process was lost; others: connection or slice lost.
    echo "ended with code $code, continues from the newest checkpoint" >&2
    if [ "$(state)" = READY ]; then
      stop # the processes that still run
    else
      create && install
    fi
  done
  return "$code"
}

watch() { on 0 "tail -n 50 -F $RUN.log"; }

stop() { # processes save and end with code 75
  on all "pkill -TERM -u \$USER -f '[l]aunch.train' && sleep 30 || true"
}

delete() { gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet; }

case "${1:-}" in
  create | install | prepare | train | watch | stop | delete) "$@" ;;
  *) usage ;;
esac
