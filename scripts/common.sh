# Sourced by quickstart.sh and test.sh: finds a Python, makes the environment, installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${TINYGPT_VENV:-.venv}"

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

find_python() {
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "tinygpt needs Python 3.11 or later; install it and run this script again" >&2
    return 1
}

make_venv() {
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version > /dev/null 2>&1 && return
    local python
    python="$(find_python)"
    step "making $venv with $("$python" --version)"
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" 2> /dev/null; then # Debian keeps ensurepip in a package of its own
        rm -rf "$venv"
        echo "this Python cannot make virtual environments; installing virtualenv beside it or python3-venv is needed"
        if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
            apt-get -q update > /dev/null && apt-get -qy install python3-venv > /dev/null
            "$python" -m venv "$venv"
        else
            echo "run: sudo apt-get install python3-venv   (then this script again)" >&2
            return 1
        fi
    fi
}

# install EXTRAS: tinygpt with these extras, editable. Nothing is done when nothing has changed since the last time.
install() {
    local stamp="$venv/.installed-$1" index="https://download.pytorch.org/whl/cpu"
    if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$(cat "$stamp")" = "$PWD" ]; then
        return
    fi
    step "installing tinygpt[$1] into $venv (a few hundred MB the first time, most of it PyTorch)"
    if [ "$(uname -s)" = Linux ] && [ ! -e /dev/nvidia0 ] && ! "$venv/bin/python" -c 'import torch' 2> /dev/null; then
        # without an NVIDIA GPU PyTorch's CPU wheels do, a tenth of the download, if their index answers
        if "$venv/bin/python" -c "import urllib.request; urllib.request.urlopen('$index/torch/', timeout=3)" 2> /dev/null; then
            "$venv/bin/python" -m pip install -q --disable-pip-version-check --index-url "$index" 'torch>=2.10'
        fi
    fi
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -e ".[$1]"
    printf '%s' "$PWD" > "$stamp"
}
