"""Ask your documents: an index of passages with full-text and vector search, and answers from a model (RAG).

Retrieval-augmented generation (Lewis et al. 2020) gives a model knowledge at query time and leaves its weights as they
are. The path of a document: documents, passages, embeddings, store; of a question: search, answer.

tinygpt index docs/ --out index.db
tinygpt ask "How long is the warranty?" --index index.db
"""
