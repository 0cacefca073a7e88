#!/bin/sh
# Lets this container join a Ray cluster as a node that offers nothing, and runs a command there as the driver:
#
#   RAY_ADDRESS=winnow-head-svc:6379 deploy/join.sh winnow curate CONFIG
#
# A driver talks to Ray through a node of its own machine. With no CPU no step is ever placed on it.
set -eu
: "${RAY_ADDRESS:?names the head of the Ray cluster, as HOST:6379}"
ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=80000000 >&2
exec "$@"
