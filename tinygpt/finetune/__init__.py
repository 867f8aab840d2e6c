"""Fine-tune a trained model with all its weights or with LoRA.

    command.py      `tinygpt finetune`
    method.py       additions to the training loop: LoRA, replay, the comparison before and after
    merge.py        `tinygpt merge`: one checkpoint made of a base model and an adapter

The package imports train and the modules below it. The adapters are in tinygpt/lora.py, since checkpoints also need
them.

    tinygpt finetune configs/finetune_transactions.yaml --ckpt out/ckpt.pt
"""
