#!/bin/sh
# Print the path of a Python that bayesgmm can be set up with: CPython 3.12 to 3.14, complete
# enough to make virtual environments.  Nothing is installed or changed.
#
#   find-python.sh              search; $PYTHON first, then PATH, then where Pythons usually live
#   find-python.sh --check EXE  look at EXE only (quiet: the exit status answers)
set -u

# Runs under any Python since 2.7: prints its real path, or says why it will not do.
probe='
import sys
version = "%d.%d.%d" % tuple(sys.version_info[:3])
if not (3, 12) <= tuple(sys.version_info[:2]) < (3, 15):
    sys.exit("is " + version)
if sys.implementation.name != "cpython":
    sys.exit("is " + sys.implementation.name)
try:
    import ctypes, ensurepip, ssl, venv, zlib
except ImportError as error:
    sys.exit("is " + version + " without its module " + str(error.name))
print(sys.executable)
'

seen=''     # what was looked at, and why it would not do

# try EXE: print the interpreter and succeed, or note the reason and fail.
try() {
    if answer=$("$1" -E -c "$probe" 2>&1 </dev/null); then
        answer=$(printf '%s\n' "$answer" | tail -n 1)
        if [ -x "$answer" ]; then
            printf '%s\n' "$answer"
            return 0
        fi
    fi
    reason=$(printf '%s\n' "$answer" | head -n 1)
    seen="$seen
    $1: ${reason:-does not run}"
    return 1
}

if [ "${1-}" = --check ]; then
    try "${2-}" >/dev/null
    exit
fi

# 1. The one asked for.
if [ -n "${PYTHON-}" ]; then
    try "$PYTHON" && exit 0
    echo "PYTHON=$PYTHON will not do ($reason); looking for another Python." >&2
fi

# 2. On PATH.  (A version manager's shim may be there and yet not run: try finds out.)
for name in python3 python3.13 python3.12 python3.14 python; do
    path=$(command -v "$name" 2>/dev/null) || continue
    try "$path" && exit 0
done

# 3. Where version managers and installers put them.  A pattern without a match stays as it is
#    and is passed over.
home=${HOME-}
pyenv=$(pyenv root 2>/dev/null </dev/null) || pyenv=''
for path in \
    "${PYENV_ROOT:-$home/.pyenv}"/versions/3.1*/bin/python \
    "${pyenv:-$home/.pyenv}"/versions/3.1*/bin/python \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$home/.local/share}/uv/python}"/cpython-3.1*/bin/python3 \
    "$home"/.asdf/installs/python/3.1*/bin/python \
    "${XDG_DATA_HOME:-$home/.local/share}"/mise/installs/python/3.1*/bin/python \
    "${CONDA_PREFIX:-/opt/conda}"/bin/python \
    "$home"/*conda3/bin/python "$home"/*forge3/bin/python "$home"/*conda3/envs/*/bin/python \
    "$home"/*forge3/envs/*/bin/python /opt/*conda*/bin/python /opt/*forge*/bin/python \
    /opt/homebrew/bin/python3.1[234] /home/linuxbrew/.linuxbrew/bin/python3.1[234] \
    /usr/local/bin/python3.1[234] /opt/local/bin/python3.1[234] \
    /usr/bin/python3.1[234] /opt/python/*3.1*/bin/python3 /opt/python3.1*/bin/python3 \
    /Library/Frameworks/Python.framework/Versions/3.1*/bin/python3
do
    [ -x "$path" ] || continue
    try "$path" && exit 0
done

cat >&2 <<MESSAGE
bayesgmm needs Python 3.12, 3.13 or 3.14, and none was found.
Looked at:${seen:-
    nothing: no Python on PATH nor where pyenv, uv, asdf, mise, conda and Homebrew put them}
Install one, then run the same command again:
    Debian, Ubuntu   sudo apt install python3 python3-venv        (Ubuntu 24.04 or Debian 13 onwards)
    Fedora           sudo dnf install python3.13
    macOS            brew install python@3.13
    pyenv            pyenv install 3.13
    conda            conda create -n py313 python=3.13
    uv               uv python install 3.13
If it lives somewhere else, name it:  make setup PYTHON=/path/to/python3.13
MESSAGE
exit 1
