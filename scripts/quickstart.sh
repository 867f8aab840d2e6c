#!/usr/bin/env bash
# bash scripts/quickstart.sh: from a fresh checkout to a GPT that you trained yourself, on the CPU, in a few minutes.
. "$(dirname "$0")/common.sh"
make_venv
install offline

step "1 of 3: prepare. Text becomes numbers: data/shakespeare_char/{train.bin, val.bin, meta.json}"
echo "\$ tinygpt prepare shakespeare_char"
"$venv/bin/tinygpt" prepare shakespeare_char

step "2 of 3: train. A GPT of 0.8 million parameters learns to predict the next character"
echo "\$ tinygpt train configs/shakespeare_char.yaml --device=cpu"
"$venv/bin/tinygpt" train configs/shakespeare_char.yaml --device=cpu

step "3 of 3: sample. The model writes"
echo "\$ tinygpt sample --ckpt out/ckpt.pt"
"$venv/bin/tinygpt" sample --ckpt out/ckpt.pt

cat << TEXT

That was your own model. Where things are:
  data/shakespeare_char/   the text as numbers, and its 65 symbols (meta.json)
  out/ckpt.pt              the model; out/metrics.jsonl: its losses; out/config.yaml: its settings
Next, after 'source $venv/bin/activate':
  tinygpt sample --ckpt out/ckpt.pt --start "ROMEO:" --num_samples 3
  tinygpt eval --ckpt out/ckpt.pt
  tinygpt prepare mine --input your_text.txt
TEXT
