"""Text: the tokenizer, its compression for n-gram memory, our chat format (chat.py) and the published ones (chats/)."""
