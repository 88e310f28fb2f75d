# What the service scripts share. Sourced, not run.
#
#   SVC_HOME  what is installed: jars, virtualenvs   (default ~/.cache/loam-services)
#   SVC_DATA  data, logs and pid files of services   (default $SVC_HOME/data)

: "${SVC_HOME:=${XDG_CACHE_HOME:-$HOME/.cache}/loam-services}"
: "${SVC_DATA:=$SVC_HOME/data}"
NAME=$(basename "$0")
mkdir -p "$SVC_HOME" "$SVC_DATA"

log() { printf '%s: %s\n' "$NAME" "$*" >&2; }
die() { log "error: $*"; exit 1; }

# run LOG CMD...: runs a command with its output in LOG, shows the log's end where it fails.
run() {
  local log=$1; shift
  "$@" >"$log" 2>&1 && return 0
  tail -n 20 "$log" >&2
  return 1
}

# one_at_a_time VERB: runs a function under the lock of $SVC_HOME, as two installs may run beside each other.
one_at_a_time() {
  if command -v flock >/dev/null; then
    exec 9>"$SVC_HOME/install.lock"
    flock 9
  fi
  "$@"
  exec 9>&-
}

# need_command COMMAND PACKAGE...: installs Debian packages where the command is missing.
need_command() {
  local command=$1; shift
  command -v "$command" >/dev/null || apt_install "$command" "$@"
  command -v "$command" >/dev/null || die "$command is still missing after installing $*"
}

# apt_install WANTED PACKAGE...: installs packages for the sake of WANTED, without starting any daemon of theirs.
apt_install() {
  local wanted=$1 policy=/usr/sbin/policy-rc.d ours= failed= apt; shift
  command -v apt-get >/dev/null || die "$wanted is missing and there is no apt-get: put it on PATH"
  [ "$(id -u)" = 0 ] || die "$wanted is missing: as root, apt-get install $*"
  apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
  # The package lists of a fresh machine are empty or old; an hour is new enough.
  if [ -z "$(find "$SVC_HOME/apt-updated" -mmin -60 2>/dev/null)" ]; then
    run "$SVC_HOME/apt-update.log" "${apt[@]}" update || die "apt-get update (all of it in $SVC_HOME/apt-update.log)"
    touch "$SVC_HOME/apt-updated"
  fi
  log "installing $*"
  # Debian starts a daemon when it is installed, on its usual port; this is its own way to say no.
  if [ ! -e "$policy" ]; then
    ours=1
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  run "$SVC_HOME/apt-install.log" "${apt[@]}" install --no-install-recommends "$@" || failed=1
  [ -z "$ours" ] || rm -f "$policy"
  [ -z "$failed" ] || die "apt-get install $* (all of it in $SVC_HOME/apt-install.log)"
}

# virtualenv DIR REQUIREMENTS WHAT: makes a Python virtualenv that has what a list of requirements names, unless it is there.
virtualenv() {
  local venv=$1 requirements=$2 what=$3 log
  log=$SVC_HOME/$(basename "$venv").log
  # The list is copied last: a virtualenv without this very list is made again.
  cmp -s "$requirements" "$venv/requirements.txt" && "$venv/bin/python" -c '' 2>/dev/null && return
  need_command python3 python3 python3-venv
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install "Python's venv" python3-venv
  log "installing $what"
  rm -rf "$venv"
  mkdir -p "$(dirname "$venv")"
  run "$log" python3 -m venv "$venv" || die "make a virtualenv in $venv"
  run "$log" "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$requirements" || die "pip install $what (all of it in $log)"
  cp "$requirements" "$venv/requirements.txt"
}

# started_at PID: when a process started, so that a pid that was given away again isn't taken for ours. Nothing where it has
# ended, which a container without a reaping init shows as a zombie for ever.
started_at() {
  if [ -d /proc/self ]; then
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 !~ /[ZX]/ {print $20}' || true
  else
    ps -o lstart= -p "$1" 2>/dev/null || true
  fi
}

# alive PIDFILE: whether the process of a pid file runs.
alive() {
  local pid since
  [ -s "$1" ] || return 1
  { read -r pid; read -r since; } <"$1" || return 1
  [ -n "$since" ] && [ "$(started_at "$pid")" = "$since" ]
}

# pid_of PIDFILE
pid_of() { head -n 1 "$1"; }

# spawn PIDFILE LOG CMD...: starts a process that outlives this script, and records it.
spawn() {
  local pidfile=$1 log=$2; shift 2
  # A session of its own: the terminal's ^C isn't for it.
  if command -v setsid >/dev/null; then set -- setsid "$@"; else set -- nohup "$@"; fi
  "$@" >>"$log" 2>&1 </dev/null &
  { echo $!; started_at $!; } >"$pidfile"
}

# stop_process PIDFILE SECONDS: asks the recorded process to end, and ends it when the time is over.
stop_process() {
  local pidfile=$1 tries=$(($2 * 10)) pid
  if alive "$pidfile"; then
    pid=$(pid_of "$pidfile")
    kill "$pid" 2>/dev/null || true
    while [ "$tries" -gt 0 ] && alive "$pidfile"; do sleep 0.1; tries=$((tries - 1)); done
    if alive "$pidfile"; then
      log "pid $pid did not end in $2 s: killed"
      kill -9 "$pid" 2>/dev/null || true
    fi
  fi
  rm -f "$pidfile"
}

# port_open PORT
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# refuse_taken PORT VARIABLE: somebody else's service would answer in place of ours.
refuse_taken() { ! port_open "$1" || die "port $1 is taken by another program: set $2"; }

# wait_ready SECONDS PIDFILE LOG CMD...: waits until CMD is true; fails at once where the process has ended.
wait_ready() {
  local tries=$(($1 * 10)) pidfile=$2 log=$3; shift 3
  [ -e "$pidfile" ] || die "not started"
  while [ "$tries" -gt 0 ]; do
    if ! alive "$pidfile"; then
      tail -n 20 "$log" >&2
      die "ended before it was ready (all of it in $log)"
    fi
    "$@" && return 0
    sleep 0.1
    tries=$((tries - 1))
  done
  tail -n 20 "$log" >&2
  die "not ready in time (all of it in $log)"
}
