"""Fine-tuning, which is training from a trained model (training/tuning.py), compared before and after.

compare.py      losses and answers before and after
merge.py        `tinygpt merge`: one checkpoint made of a base model and an adapter

tinygpt finetune configs/finetune_transactions.yaml --ckpt out/ckpt.pt
"""
