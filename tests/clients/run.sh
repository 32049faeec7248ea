#!/bin/sh
# Runs the clients that people use through a conversation each with a server of its own:
# strings, expiry, pipelines, transactions, scans, messages, and a connection that is lost.
#
#   tests/clients/run.sh [BINARY]
#
# BINARY is `firn` (default: target/release/firn, built if it is not there). Installs the clients
# from PyPI, npm and crates.io into a scratch directory, CLIENTS_DIR (default:
# target/clients). A client whose tools are not there is skipped, and said to be.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
binary=${1:-$target/release/firn}
scratch=${CLIENTS_DIR:-$target/clients}
[ -x "$binary" ] || cargo build --release --manifest-path "$root/Cargo.toml"
mkdir -p "$scratch"
data=$(mktemp -d "$scratch/data.XXXXXX")
"$binary" serve --data-dir "$data/d" --http 127.0.0.1:0 --resp 127.0.0.1:0 \
    --log-level warn >"$data/ready" &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$data"' EXIT
tries=0
until grep -q '^ready ' "$data/ready"; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "the server did not start"; exit 1; }
    sleep 0.1
done
port=$(sed -n 's/.* resp=[^ ]*:\([0-9]*\).*/\1/p' "$data/ready")
failed=0
passed() { echo "ok       $1"; }
skipped() { echo "skipped  $1: $2"; }
judge() { # name command...
    name=$1
    shift
    if "$@" >"$data/log" 2>&1; then
        passed "$name"
    else
        echo "FAILED   $name"
        sed 's/^/         /' "$data/log"
        failed=1
    fi
}
has() { command -v "$1" >/dev/null 2>&1; }

if has python3; then
    [ -d "$scratch/python" ] || python3 -m venv "$scratch/python"
    "$scratch/python/bin/pip" install --quiet redis==8.1.0 valkey==6.2.0
    judge "redis-py" "$scratch/python/bin/python" "$here/python_client.py" redis "$port"
    judge "valkey-py" "$scratch/python/bin/python" "$here/python_client.py" valkey "$port"
else
    skipped "redis-py, valkey-py" "no python3"
fi

if has node && has npm; then
    mkdir -p "$scratch/node"
    (cd "$scratch/node" && npm install --silent --no-fund --no-audit ioredis@6.0.0 redis@6.3.1 @valkey/valkey-glide@2.5.2 >/dev/null 2>&1)
    judge "ioredis" env NODE_PATH="$scratch/node/node_modules" node "$here/ioredis_client.js" "$port"
    judge "node-redis" env NODE_PATH="$scratch/node/node_modules" node "$here/node_redis_client.js" "$port"
    judge "valkey-glide" env NODE_PATH="$scratch/node/node_modules" node "$here/glide_client.js" "$port"
else
    skipped "ioredis, node-redis, valkey-glide" "no node or npm"
fi

judge "redis-rs" env CARGO_TARGET_DIR="$scratch/rust" \
    cargo run --quiet --manifest-path "$here/rust/Cargo.toml" -- "$port"

if has redis-cli; then
    judge "redis-cli" sh "$here/redis_cli.sh" "$port"
else
    skipped "redis-cli" "not installed"
fi
if has redis-benchmark; then
    judge "redis-benchmark" redis-benchmark -p "$port" -t ping,set,get,incr,mset -n 2000 -c 20 -q
    judge "redis-benchmark, pipelined" redis-benchmark -p "$port" -t set,get -n 20000 -P 16 -q
else
    skipped "redis-benchmark" "not installed"
fi
exit $failed
