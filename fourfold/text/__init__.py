"""Text: the tokenizer, its compression for n-gram memory, and the chat format."""
