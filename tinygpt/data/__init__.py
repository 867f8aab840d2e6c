"""Data: text, pairs and tasks, tokenizers, and the token files that a model is trained on.

corpora      Tiny Shakespeare and GPT-2's vocabulary, from packages or the network, checked by SHA-256
tasks        tasks for fine-tuning, generated from templates or tables
text_files   find text files and read them in blocks
pairs        prompts and responses from JSON Lines, CSV or Excel files into a dataset
workbook     read a sheet of an Excel workbook
tokenizer    text to ids and back: characters, or GPT-2's byte-pair encoding
token_files  write a dataset: token files and meta.json, complete or not at all
query        run a query that a model wrote, read-only and within limits
dataset      read a dataset and check it
rows         the rows of a batch, from text, from pairs, or from a mixture of both for replay
preview      print what `tinygpt prepare` made
prompts      encode the prompt of `tinygpt sample`

The package imports `errors`, `terminal`, `files` and `config`; it knows nothing of models, and numpy but not torch.

    Dataset("data", "shakespeare_char").sources["train"].draw(seed=1337, step=0, block_size=64, count=12)
"""
