#!/usr/bin/env bash
# bash scripts/release.sh: build the wheel and the source archive of a release in dist/, and test them as a user does
#
# The tree must have no changes, and CHANGELOG.md must begin with the section of the version in tinygpt/base/__init__.py. The
# wheel is installed into an empty environment outside the checkout, where the three commands and tests of the installed
# package run. The script publishes nothing: it ends with the commands that tag the release.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
TINYGPT_VENV="$work/build"
unset PYTHONPATH # which could lead to the checkout's package
. "$(dirname "$0")/common.sh"
refuse() { echo "$1" >&2 && exit 2; }

version="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' tinygpt/base/__init__.py)"
tag="v$version"
commit="$(git rev-parse HEAD)"
section="$(grep -m1 '^## ' CHANGELOG.md || true)"
[ -z "$(git status --porcelain)" ] || refuse "the tree has changes; commit them first: git status"
[ "$(git rev-parse -q --verify "$tag^{commit}" || echo "$commit")" = "$commit" ] ||
    refuse "$tag is the tag of another commit; raise __version__ in tinygpt/base/__init__.py"
[ "$section" = "## $version" ] ||
    refuse "CHANGELOG.md begins with \"$section\", not with \"## $version\"; rename the section or change __version__"

step "building tinygpt $version in dist/" # the wheel from the source archive, which shows that that is complete
make_venv
pip_install build
mkdir -p dist
rm -f dist/tinygpt-* dist/SHA256SUMS
"$bin/python" -m build --outdir dist > "$work/log" || { cat "$work/log" && exit 1; }
wheel="$PWD/dist/tinygpt-$version-py3-none-any.whl"

step "installing the wheel into an empty environment"
bin="$work/venv/${bin##*/}" venv="$work/venv"
make_venv
install_torch
pip_install "$wheel"
cp -R pyproject.toml tests scripts notebooks "$work" # but not the package
checkout="$PWD" dist="$PWD/dist"
cd "$work"
"$bin/python" -c 'import sys, tinygpt; print(tinygpt.__file__); assert tinygpt.__file__.startswith(sys.prefix)'

step "the three commands"
"$bin/tinygpt" prepare shakespeare_char
"$bin/tinygpt" train configs/shakespeare_char.yaml --device=cpu --max_iters=100
"$bin/tinygpt" sample --ckpt out/ckpt.pt --max_new_tokens=100
"$bin/tinygpt" doctor out data/shakespeare_char

step "tests of the installed package"
pip_install "$wheel[dev,offline]"
"$bin/python" -m pytest -p no:cacheprovider -m "not slow" \
    tests/test_{generate,prepare,sample,train,transcripts}.py tests/base/test_files.py tests/data/test_{rows,tokenizer}.py \
    tests/checkpoint/test_checkpoint.py tests/examine/test_{evaluate,doctor}.py tests/adapt/test_finetune.py

step "the site and the slides"
"$bin/python" "$checkout/scripts/site.py" "$work/site"
"$bin/python" -m zipfile -c "$dist/tinygpt-$version-site.zip" "$work/site"

step "the complete notebook" # about eight minutes; the tests run its cells with short trainings
"$bin/python" scripts/notebook.py --check

cd "$dist"
if command -v sha256sum > /dev/null; then sha256sum tinygpt-*; else shasum -a 256 tinygpt-*; fi > SHA256SUMS
step "done: dist/"
cat SHA256SUMS
printf '\nTo tag this release:\n\n  git tag -a %s -m "tinygpt %s" %s\n  git push origin %s\n' "$tag" "$version" "$commit" "$tag"
