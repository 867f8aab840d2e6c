"""Fine-tuning, which is training from a trained model (training/tuning.py), compared before and after.

tinygpt finetune configs/finetune_transactions.yaml --ckpt out/ckpt.pt
"""
