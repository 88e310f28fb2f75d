#!/usr/bin/env bash
# Installs what the Python package is tested with into a virtualenv in build/ of this tree, then the package itself from its
# sources here, and prints the path of the virtualenv's Python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../services/lib.sh"
root=$(cd "$here/../.." && pwd)
venv=$root/build/python

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

install() {
  libraries
  run "$SVC_HOME/python.log" "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps "$root/python" ||
    die "pip install of the package (all of it in $SVC_HOME/python.log)"
}

libraries() {
  # The list of requirements is copied last: a virtualenv without this very list is made again.
  cmp -s "$here/requirements.txt" "$venv/requirements.txt" && "$venv/bin/python" -c '' 2>/dev/null && return
  need_command python3 python3 python3-venv
  has_venv || apt_install "Python's venv" python3-venv
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "the tests' libraries need Python 3.11 or later, and python3 is older"
  log "installing what the Python package is tested with"
  rm -rf "$venv"
  mkdir -p "$root/build"
  run "$SVC_HOME/python.log" python3 -m venv "$venv" || die "make a virtualenv in $venv"
  run "$SVC_HOME/python.log" "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$here/requirements.txt" ||
    die "pip install of what tests need (all of it in $SVC_HOME/python.log)"
  cp "$here/requirements.txt" "$venv/requirements.txt"
}

one_at_a_time install
echo "$venv/bin/python"
