"""Models in and out: Hugging Face folders, GGUF files and PEFT adapters.

Everything passes through `architectures.Stock`: a model with the names and the config.json of a stock class. The
libraries (safetensors, tokenizers, gguf, jinja2, huggingface_hub) come with `pip install "tinygpt[pretrained]"` and are
imported inside the functions.
"""
