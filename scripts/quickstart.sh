#!/usr/bin/env bash
# bash scripts/quickstart.sh: from a fresh checkout to a GPT that you trained yourself, on the CPU, in a few minutes.
. "$(dirname "$0")/common.sh"
make_venv
install offline,report # the report is one of the commands that quickstart suggests
"$bin/tinygpt" quickstart "$@"
printf '\nTo have the command tinygpt in this terminal: source %s/activate\n' "$bin"
