#!/usr/bin/env bash
# Installs Feast into a virtualenv below $SVC_HOME, and prints the path of its Python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../services/lib.sh"
venv=$SVC_HOME/feast

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

install() {
  # The list of requirements is copied last: a virtualenv without this very list is made again.
  cmp -s "$here/requirements.txt" "$venv/requirements.txt" && "$venv/bin/python" -c '' 2>/dev/null && return
  need_command python3 python3 python3-venv
  has_venv || apt_install "Python's venv" python3-venv
  log "installing Feast"
  rm -rf "$venv"
  run "$SVC_HOME/feast.log" python3 -m venv "$venv" || die "make a virtualenv in $venv"
  run "$SVC_HOME/feast.log" "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$here/requirements.txt" ||
    die "pip install Feast (all of it in $SVC_HOME/feast.log)"
  cp "$here/requirements.txt" "$venv/requirements.txt"
}

one_at_a_time install
echo "$venv/bin/python"
