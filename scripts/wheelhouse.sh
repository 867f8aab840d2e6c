#!/usr/bin/env bash
# bash scripts/wheelhouse.sh [windows|macos|linux] [PYTHON]: a folder that installs tinygpt without a network
#
#     bash scripts/wheelhouse.sh                  # for this machine's system and Python
#     bash scripts/wheelhouse.sh windows 3.13     # for Windows with Python 3.13, into the same folder
#
# Run it once for each system and Python version of the class, then copy wheelhouse/ to a USB stick; INSTALL.txt in it
# says how to install. A system takes about 400 MB. EXTRAS=offline leaves all other extras out.
. "$(dirname "$0")/common.sh"
extras="${EXTRAS:-offline,report,eval,excel,notebook}"
house=wheelhouse
system="${1:-}"
case "$system" in
    "") tags="" ;; # this one
    windows) tags="win_amd64" ;;
    macos) tags="$(printf 'macosx_%s ' {14,13,12,11}_0_arm64 {11_0,10_15,10_13,10_9}_universal2)" ;;
    linux) tags="$(printf 'manylinux%s_x86_64 ' _2_28 _2_27 _2_17 2014 _2_12 _2_5 1)" ;;
    *) echo "$system: no such system; windows, macos (Apple silicon, macOS 14 or later) or linux" >&2 && exit 2 ;;
esac
make_venv
version="${2:-$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}"
pip() { "$bin/python" -m pip --disable-pip-version-check "$@"; }

mkdir -p "$house"
step "building tinygpt's own wheel"
rm -f "$house"/tinygpt-*.whl
pip wheel -q --no-deps -w "$house" .
wheel="$(echo "$house"/tinygpt-*.whl)"

step "downloading its dependencies for ${system:-this system} and Python $version (a few hundred MB)"
index=()
if [ "${system:-$(uname -s | tr A-Z a-z)}" = linux ] && torch_cpu_index; then index=(--extra-index-url "$torch_cpu"); fi
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

cp notebooks/gpt_from_scratch.ipynb "$house"
pythons="$(ls "$house" | sed -nE 's/^torch-.*-cp3([0-9]+)-.*/3.\1/p' | sort -u | paste -sd / -)" # of all runs
cat > "$house/INSTALL.txt" << TEXT
Install tinygpt from this folder, without a network. Python $pythons, which the wheels are for, must be there already
(https://www.python.org/downloads); open a terminal in the folder that holds "$house".

Windows (PowerShell):
  python -m venv venv
  venv\Scripts\python -m pip install --no-index --find-links $house "tinygpt[$extras]"
  venv\Scripts\tinygpt quickstart

macOS (Apple silicon), Linux:
  python3 -m venv venv
  venv/bin/python -m pip install --no-index --find-links $house "tinygpt[$extras]"
  venv/bin/tinygpt quickstart
TEXT
step "done: $(du -sh "$house" | cut -f1) in $house/, $(ls "$house"/*.whl | wc -l | tr -d ' ') wheels; how to install: $house/INSTALL.txt"
