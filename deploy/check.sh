#!/bin/sh
# Builds the image, starts the five nodes of the compose file, writes, kills the leader, and looks whether
# the cluster goes on; with Prometheus, whether it sees all of that. Everything it made is removed.
#
#   deploy/check.sh [BINARY]          default: target/release/firn
#
# Needs Docker and Docker Compose, curl, and these ports of the machine free: 8081 to 8085, 6381 to 6385,
# and 9090 if Prometheus and promtool are installed (they need not be). Settings, from the environment:
#
#   BASE       the image that ours is based on; default: that of the Dockerfile. Without a registry:
#              debootstrap --variant=minbase trixie root && tar -C root -c . | docker import - firn-base
#   COMPOSE    the command; default: docker compose, or docker-compose
set -eu

here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-$here/../target/release/firn}
project=firn-check-$$
scratch=$(mktemp -d)
prometheus=
export FIRN_IMAGE=$project

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
fail() { say "FAILED: $*"; exit 1; }

if [ -z "${COMPOSE:-}" ]; then
    if docker compose version >/dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE=docker-compose; fi
fi
compose() { $COMPOSE -p "$project" -f "$here/compose/compose.yaml" "$@"; }

finish() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$prometheus" ]; then kill "$prometheus" 2>/dev/null || true; wait "$prometheus" 2>/dev/null || true; fi
    [ $status -eq 0 ] || compose logs --tail=30 2>/dev/null || true
    compose down -v --remove-orphans >/dev/null 2>&1 || true
    docker rmi "$project" >/dev/null 2>&1 || true
    rm -rf "$scratch"
    exit $status
}
trap finish EXIT INT TERM

# until WHAT SECONDS COMMAND...: repeats the command until it succeeds.
until_so() {
    what=$1 left=$(($2 * 5))
    shift 2
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "$what"
        sleep 0.2
    done
}

url() { echo "http://127.0.0.1:808$1"; }
get() { curl -sf --max-time 5 "$(url "$1")/v1/keys/$2"; }
put() { curl -sf --max-time 5 -o /dev/null -X PUT --data-binary "$3" "$(url "$1")/v1/keys/$2"; }
# field NODE NAME: a number of the cluster's description.
field() { curl -sf --max-time 5 "$(url "$1")/v1/cluster" | grep -o "\"$2\":[0-9]*" | head -n 1 | cut -d: -f2; }
ready() { curl -sf --max-time 5 -o /dev/null "$(url "$1")/readyz"; }
voters() {
    curl -sf --max-time 5 "$(url "$1")/v1/cluster" | sed 's/.*"members"://' \
        | grep -o '"role":"\(leader\|voter\)"' | wc -l
}
is_cluster_of() { [ "$(voters 1)" = "$1" ]; }
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q "node$1")")" = healthy ]; }

if command -v promtool >/dev/null; then
    say "rules"
    promtool check rules "$here/prometheus/alerts.yml" >/dev/null
    promtool check config "$here/prometheus/prometheus.yml" >/dev/null
    (cd "$here/prometheus" && promtool test rules alerts_test.yml >/dev/null)
fi

say "image"
cp "$here/docker/Dockerfile" "$scratch/"
cp "$binary" "$scratch/firn"
docker build -q --target local ${BASE:+--build-arg BASE="$BASE"} -t "$project" "$scratch" > "$scratch/build.log" 2>&1 \
    || { cat "$scratch/build.log"; fail "the image is not built"; }
[ "$(docker run --rm --entrypoint /usr/bin/id "$project" -u)" = 65532 ] || fail "it runs as somebody else"

say "five nodes"
compose up -d node1 node2 node3 node4 node5 > "$scratch/up.log" 2>&1 || { cat "$scratch/up.log"; fail "the nodes do not start"; }
until_so "no cluster of five voters within 120 s" 120 is_cluster_of 5
for n in 1 2 3 4 5; do until_so "node$n is not ready" 60 ready $n; done
say "five voters, all ready"

if command -v prometheus >/dev/null; then
    sed -e 's/targets: .*/targets: ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083", "127.0.0.1:8084", "127.0.0.1:8085"]/' \
        -e 's/: 5s/: 1s/' "$here/prometheus/prometheus.yml" > "$scratch/prometheus.yml"
    cp "$here/prometheus/alerts.yml" "$scratch/"
    prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/tsdb" \
        --web.listen-address=127.0.0.1:9090 > "$scratch/prometheus.log" 2>&1 &
    prometheus=$!
fi
# query EXPRESSION VALUE: whether Prometheus says so.
query() { curl -s -G --data-urlencode "query=$1" http://127.0.0.1:9090/api/v1/query | grep -q "\"value\":\[[0-9.]*,\"$2\"\]"; }
sees() { [ -z "$prometheus" ] || until_so "Prometheus does not see that $1 is $2" 30 query "$1" "$2"; }

say "writes through every node, reads through every other"
for i in $(seq 1 100); do put $((i % 5 + 1)) "k$i" "value $i" || fail "k$i was not written"; done
for i in $(seq 1 100); do
    [ "$(get $(((i + 2) % 5 + 1)) "k$i")" = "value $i" ] || fail "k$i is not what was written"
done
sees 'sum(up{job="firn"})' 5
sees 'sum(firn_raft_ready)' 5
sees 'sum(firn_raft_is_leader)' 1
for n in 1 2 3 4 5; do until_so "node$n is not healthy, says Docker" 30 healthy $n; done

# Numbers are given in the order of joining: which container leads, its own page says.
leads() { curl -s --max-time 5 "$(url "$1")/metrics" | grep -q '^firn_raft_is_leader 1$'; }
leader=
for n in 1 2 3 4 5; do if leads $n; then leader=$n; fi; done
[ -n "$leader" ] || fail "nobody leads"
other=$((leader % 5 + 1))
say "node$leader leads; it is killed"
begin=$(date +%s%N)
compose kill "node$leader" >/dev/null 2>&1
until_so "no write within 30 s after the leader was killed" 30 put "$other" after "still here"
took=$((($(date +%s%N) - begin) / 1000000))
say "written again $took ms after that"
for i in $(seq 1 100); do
    [ "$(get "$other" "k$i")" = "value $i" ] || fail "k$i is lost"
done
sees 'sum(up{job="firn"})' 4
sees 'sum(firn_raft_is_leader)' 1

say "it comes back"
compose start "node$leader" >/dev/null 2>&1
until_so "node$leader is not ready again" 60 ready "$leader"
[ "$(get "$leader" after)" = "still here" ] || fail "it lacks what was written meanwhile"
sees 'sum(firn_raft_ready)' 5
say "ok: term $(field "$leader" term), leader $(field "$leader" leader)"
