"""Fine-tuning: compare the model before and after.

The training is that of train.py, with training/tuning.py.

tinygpt finetune configs/finetune_transactions.yaml --ckpt out/ckpt.pt
"""
