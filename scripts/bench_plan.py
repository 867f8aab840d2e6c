"""Predict runs with `tinygpt plan`, make them, and compare: the table of docs/SCALING.md.

The configurations were chosen, and committed, before any prediction was fitted.
"""

# name: arguments of tinygpt train
HELD_OUT = {
    "the preset": "configs/shakespeare_char.yaml",
    "small and long": "configs/shakespeare_char.yaml --n_layer=2 --n_embd=64 --max_iters=12000 --eval_interval=2000",
    "large": "configs/shakespeare_char.yaml --n_layer=6 --n_head=6 --n_embd=192 --max_iters=2000",
    "context of 128": "configs/shakespeare_char.yaml --block_size=128 --max_iters=4000",
    "best recipe, shortened": "configs/shakespeare_char_best.yaml --max_iters=2000",
    "fast recipe, lengthened": "configs/shakespeare_char_fast.yaml --max_iters=4000 --eval_interval=1000",
    "portable": "configs/portable.yaml --max_iters=5000",
    "other corpus": "configs/shakespeare_char.yaml --dataset=naics --max_iters=5000",
    "other corpus, portable, small": "configs/portable.yaml --dataset=naics --n_layer=3 --n_head=3 --n_embd=96 "
    "--mlp_width=256 --max_iters=8000 --eval_interval=1000",
    "byte-pair encoding": "configs/shakespeare.yaml --max_iters=1000",
    "pairs, from scratch": "configs/sql.yaml",
    "dropout, repeated data": "configs/shakespeare_char_best.yaml --n_layer=3 --n_head=3 --n_embd=96 --dropout=0.1 "
    "--max_iters=6000 --eval_interval=2000",
}
