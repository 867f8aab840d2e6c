"""Data: text, pairs and tasks, tokenizers, and the token files that a model is trained on.

corpora      Tiny Shakespeare and GPT-2's vocabulary, from packages or the network, checked by SHA-256
tasks        two classification tasks for fine-tuning, written by seeded templates
text_files   find text files and read them in blocks
pairs        prompts and responses from JSON Lines or CSV into a dataset
prompts      from a prompt as a user types it to its tokens
tokenizer    text to ids and back: characters, or GPT-2's byte pairs
token_files  write a dataset: token files and meta.json, complete or not at all
dataset      read a dataset and check it
rows         the rows of a batch: of text, of pairs, of a mixture for replay
preview      print what `tinygpt prepare` made
prompts      encode the prompt of `tinygpt sample`

The package imports `errors`, `terminal`, `files` and `config`; it knows nothing of models, and numpy but not torch.

    Dataset("data", "shakespeare_char").sources["train"].draw(seed=1337, step=0, block_size=64, count=12)
"""
