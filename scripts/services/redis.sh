#!/usr/bin/env bash
# One Redis for tests: the redis-server of apt, on the loopback only, with nothing kept on disk.
#
#   redis.sh install|start|wait|stop|wipe
#   redis.sh cluster start|wait|stop|wipe     a Redis Cluster of three servers, on REDIS_CLUSTER_PORT and the next two
#
#   REDIS_PORT          (default 16379)
#   REDIS_DATA          log and pid file (default $SVC_DATA/redis-$REDIS_PORT)
#   REDIS_CLUSTER_PORT  (default 16479); its servers speak to each other on ports that are 10000 higher
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${REDIS_PORT:=16379}"
: "${REDIS_CLUSTER_PORT:=16479}"
: "${REDIS_DATA:=$SVC_DATA/redis-$REDIS_PORT}"
pidfile=$REDIS_DATA/pid
logfile=$REDIS_DATA/redis.log

install() { need_command redis-server redis-server redis-tools; }

start() {
  alive "$pidfile" && { log "already running on port $REDIS_PORT"; return; }
  command -v redis-server >/dev/null || one_at_a_time install
  refuse_taken "$REDIS_PORT" REDIS_PORT
  mkdir -p "$REDIS_DATA"
  # A store of features never evicts: a value that went missing is an error, not a cache miss.
  spawn "$pidfile" "$logfile" redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --dir "$REDIS_DATA" \
    --save '' --appendonly no --maxmemory-policy noeviction --daemonize no ${REDIS_OPTIONS:-}
}

ready() { [ "$(redis-cli -h 127.0.0.1 -p "$REDIS_PORT" ping 2>/dev/null)" = PONG ]; }

# each VERB: runs this script for every server of the cluster.
each() {
  local i port
  for i in 0 1 2; do
    port=$((REDIS_CLUSTER_PORT + i))
    REDIS_PORT=$port REDIS_DATA=$SVC_DATA/redis-cluster-$port REDIS_OPTIONS='--cluster-enabled yes --cluster-node-timeout 2000' "$0" "$1"
  done
}

cluster_ready() {
  local i
  for i in 0 1 2; do
    redis-cli -h 127.0.0.1 -p $((REDIS_CLUSTER_PORT + i)) cluster info 2>/dev/null | grep -q '^cluster_state:ok' || return 1
  done
}

# form: makes a cluster of the servers, unless they are one.
form() {
  local i servers=() tries=150
  for i in 0 1 2; do servers+=("127.0.0.1:$((REDIS_CLUSTER_PORT + i))"); done
  cluster_ready || run "$SVC_DATA/redis-cluster.log" redis-cli --cluster create "${servers[@]}" --cluster-yes
  until cluster_ready; do
    [ "$tries" -gt 0 ] || die "the cluster is not ready in time"
    sleep 0.1
    tries=$((tries - 1))
  done
}

cluster() {
  case ${1:-} in
    start | stop | wipe) each "$1" ;;
    wait) each wait; form ;;
    *) echo "usage: $0 cluster start|wait|stop|wipe" >&2; exit 2 ;;
  esac
}

case ${1:-} in
  install) one_at_a_time install ;;
  start) start ;;
  wait) wait_ready 15 "$pidfile" "$logfile" ready ;;
  stop) stop_process "$pidfile" 15 ;;
  wipe) stop_process "$pidfile" 15; rm -rf "$REDIS_DATA" ;;
  cluster) cluster "${2:-}" ;;
  *) echo "usage: $0 [cluster] install|start|wait|stop|wipe" >&2; exit 2 ;;
esac
