"""Fine-tune a trained model with all its weights or with LoRA.

    command.py      `tinygpt finetune`
    method.py       what fine-tuning adds to the training loop: LoRA, replay, the model before and after
    merge.py        `tinygpt merge`: one checkpoint made of a base model and an adapter

The package imports train and the modules below it; the adapters themselves are in tinygpt/lora.py, since checkpoints
need them too.

    tinygpt finetune configs/finetune_transactions.yaml --ckpt out/ckpt.pt
"""
