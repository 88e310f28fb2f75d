#!/usr/bin/env bash
# Installs what the Python package is tested with into a virtualenv in build/ of this tree, then the package itself from its
# sources here, and prints the path of the virtualenv's Python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../services/lib.sh"
root=$(cd "$here/../.." && pwd)
venv=$root/build/python

install() {
  need_command python3 python3 python3-venv
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "the tests' libraries need Python 3.11 or later, and python3 is older"
  virtualenv "$venv" "$here/requirements.txt" "what the Python package is tested with"
  run "$SVC_HOME/python.log" "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps "$root/python" ||
    die "pip install of the package (all of it in $SVC_HOME/python.log)"
}

one_at_a_time install
echo "$venv/bin/python"
