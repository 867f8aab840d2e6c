"""Search your documents: an index of passages with full-text and vector search, and answers that are quotations.

A document passes through the modules documents, passages, sentences, embeddings and store; a question passes through
search and rank. A model on top (answer) is optional: retrieval-augmented generation (Lewis et al. 2020).

tinygpt ask "How long is the warranty?" docs/
"""
