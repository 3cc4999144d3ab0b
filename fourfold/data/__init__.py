"""Data: corpora, documents and packed batches."""
