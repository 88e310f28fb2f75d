#!/usr/bin/env bash
# One S3 object store for tests: versitygw, built through Go's module proxy, over a folder, on the loopback only.
#
#   s3.sh install|start|wait|stop|wipe
#   s3.sh bucket NAME
#
#   S3_PORT  (default 18333)
#   S3_DATA  objects, log and pid file (default $SVC_DATA/s3-$S3_PORT)
#
# Its one account is test, with the secret testtest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${VERSITYGW_VERSION:=v1.8.0}"
: "${S3_PORT:=18333}"
: "${S3_DATA:=$SVC_DATA/s3-$S3_PORT}"
binary=$SVC_HOME/versitygw-$VERSITYGW_VERSION/versitygw
pidfile=$S3_DATA/pid
logfile=$S3_DATA/s3.log

install() {
  [ -x "$binary" ] && return
  command -v go >/dev/null || die "go is missing: put it on PATH"
  log "building versitygw $VERSITYGW_VERSION"
  GOFLAGS= GOBIN=$(dirname "$binary") run "$SVC_HOME/versitygw.log" go install "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW_VERSION" ||
    die "go install versitygw (all of it in $SVC_HOME/versitygw.log)"
}

start() {
  alive "$pidfile" && { log "already running on port $S3_PORT"; return; }
  one_at_a_time install
  refuse_taken "$S3_PORT" S3_PORT
  mkdir -p "$S3_DATA/objects" "$S3_DATA/meta"
  spawn "$pidfile" "$logfile" "$binary" --access test --secret testtest --port "127.0.0.1:$S3_PORT" \
    posix --sidecar "$S3_DATA/meta" "$S3_DATA/objects"
}

case ${1:-} in
  install) one_at_a_time install ;;
  start) start ;;
  wait) wait_ready 30 "$pidfile" "$logfile" port_open "$S3_PORT" ;;
  bucket) mkdir -p "$S3_DATA/objects/${2:?bucket NAME}" ;; # a bucket is a folder
  stop) stop_process "$pidfile" 15 ;;
  wipe) stop_process "$pidfile" 15; rm -rf "$S3_DATA" ;;
  *) echo "usage: $0 install|start|wait|stop|wipe | bucket NAME" >&2; exit 2 ;;
esac
