#!/bin/sh
# Installs the Python packages that tests talk to (edge/tests/foreign/requirements.txt) into a virtual
# environment in the target folder. Does nothing where they are there already.
set -eu
cd "$(dirname "$0")/.."

wanted=edge/tests/foreign/requirements.txt
venv=${CARGO_TARGET_DIR:-target}/test-venv
# Written last: what is there is whole, and by these requirements.
if cmp -s "$wanted" "$venv/installed.txt" && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# The first Python that is new enough: the one on the PATH may be older than Debian's.
for python in python3 /usr/bin/python3 none; do
    if "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        break
    fi
done
if [ "$python" = none ]; then
    echo "no Python 3.11 with venv: scripts/install-test-deps.sh installs Debian's" >&2
    exit 1
fi

echo "installing for tests: $(grep -v '^#' "$wanted" | tr '\n' ' ')"
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
cp "$wanted" "$venv/installed.txt"
