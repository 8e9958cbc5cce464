#!/bin/sh
# Make .venv and install bayesgmm into it, editable, with its development tools, at the versions
# in constraints.txt.  Safe to run again: what an interrupted run left behind is replaced.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
venv=$root/.venv
python=$venv/bin/python

# An environment will do if its setup was finished (the stamp is written last), it was made for this
# very folder (not copied or moved here), and its Python is a supported one that still runs.
usable() {
    [ -f "$venv/.stamp" ] &&
        grep -qF " $venv" "$venv/pyvenv.cfg" &&
        sh scripts/find-python.sh --check "$python" &&
        "$python" -m pip --version >/dev/null
}

if ! usable 2>/dev/null; then
    base=$(sh scripts/find-python.sh)
    echo "Making .venv with $base"
    "$base" -m venv --clear "$venv"
fi
rm -f "$venv/.stamp"

echo "Installing into .venv; the first time this downloads some 110 packages"
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# uv is quick, but is not made for every platform and does not read pip's settings (mirrors,
# certificates): pip does the same where uv cannot.  uv is told which Python, as it would
# otherwise choose an active environment.
"$python" -m uv --version >/dev/null 2>&1 || pip install --quiet -c constraints.txt uv ||
    echo "uv cannot be installed here"
# Compiling to bytecode now saves four seconds at every start where Python may not do it later.
if ! "$python" -m uv pip install --compile-bytecode --python "$python" \
    -c constraints.txt -e . --group dev
then
    echo "uv could not install; trying with pip"
    pip install --quiet --upgrade 'pip>=25.1'    # the first with --group
    pip install --quiet -c constraints.txt -e . --group dev
fi

printf '%s\n' "$root" >"$venv/.stamp"
