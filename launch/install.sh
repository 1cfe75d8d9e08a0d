#!/bin/sh
# install.sh VENV EXTRAS: installs everything into a virtual environment; called by `make install`. Says what it does
# and, on a terminal, shows pip's progress on one line. All of pip's output is in VENV/install.log.
set -eu
venv=$1 extras=$2
log=$venv/install.log

pip() {
    # The exit code of a pipeline is that of its last command.
    { code=0; "$venv/bin/python" -m pip "$@" 2>&1 || code=$?; echo "$code" >"$log.code"; } | show
    read -r code <"$log.code"
    rm "$log.code"
    [ "$code" -eq 0 ] || { tail -n 20 "$log" >&2; exit "$code"; }
}

show() {
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        case $line in
        Collecting* | *Downloading* | Building* | Installing*) [ ! -t 1 ] || printf '\r\033[K  %.76s' "$line" ;;
        esac
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

if [ ! -x "$venv/bin/python" ]; then
    echo "making $venv"
    "${PYTHON:-python3}" -m venv "$venv"
fi
: >"$log"
# torch is installed first and pinned: resolved freely, it would download gigabytes of CUDA.
echo "installing torch, in the version of constraints.txt"
pip install --constraint constraints.txt torch
echo "installing storyteller_ds and what it needs ($extras): about 125 packages, a minute or two"
pip install --constraint constraints.txt --editable ".[$extras]"
sh launch/install_libaio.sh "$venv"
echo "done: source $venv/bin/activate"
