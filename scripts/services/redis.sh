#!/usr/bin/env bash
# One Redis for tests: the redis-server of apt, on the loopback only, with nothing kept on disk.
#
#   redis.sh install|start|wait|stop|wipe
#
#   REDIS_PORT  (default 16379)
#   REDIS_DATA  log and pid file (default $SVC_DATA/redis-$REDIS_PORT)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${REDIS_PORT:=16379}"
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
    --save '' --appendonly no --maxmemory-policy noeviction --daemonize no
}

ready() { [ "$(redis-cli -h 127.0.0.1 -p "$REDIS_PORT" ping 2>/dev/null)" = PONG ]; }

case ${1:-} in
  install) one_at_a_time install ;;
  start) start ;;
  wait) wait_ready 15 "$pidfile" "$logfile" ready ;;
  stop) stop_process "$pidfile" 15 ;;
  wipe) stop_process "$pidfile" 15; rm -rf "$REDIS_DATA" ;;
  *) echo "usage: $0 install|start|wait|stop|wipe" >&2; exit 2 ;;
esac
