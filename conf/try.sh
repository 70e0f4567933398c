#!/bin/bash
# Runs a redis-server of its own on loopback and a proxy before it, until Ctrl-C.
set -euo pipefail
listen=$1 port=$2

redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --loglevel warning &
redis=$!
trap 'kill $redis 2>/dev/null || true' EXIT
target/release/pointsman proxy --listen "$listen" --master "127.0.0.1:$port"
