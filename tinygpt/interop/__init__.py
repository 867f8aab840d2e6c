"""Models in and out: Hugging Face folders, GGUF files and PEFT adapters.

    architectures.py   a GPT as one of the classes that transformers ships, and back
    tokenizers.py      tokenizers and chat templates as files
    chat.py            chat templates: the text around prompt and response
    huggingface.py     folders with config.json and model.safetensors
    gguf_file.py       GGUF, the format of llama.cpp
    peft.py            LoRA adapters in PEFT's format

Everything passes through `architectures.Stock`: a model with the names and the config.json of a stock class.

The commands `import` and `export` are in convert.py. The package imports checkpoint, data and model. Its libraries
(safetensors, tokenizers, gguf, jinja2, huggingface_hub) come with `pip install "tinygpt[pretrained]"` and are imported
inside the functions.

    tinygpt import smollm2 --out_dir out-smollm2
    tinygpt export --ckpt out/ckpt.pt --format gguf
"""
