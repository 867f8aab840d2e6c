"""Search your documents: an index of passages with full-text and vector search, and answers from a model (RAG).

Retrieval-augmented generation (Lewis et al. 2020) gives a model knowledge at query time and leaves its weights
unchanged. A document passes through the modules documents, passages, embeddings and store; a question passes through
search and answer.

tinygpt index docs/ --out index.db
tinygpt ask "How long is the warranty?" --index index.db
"""
