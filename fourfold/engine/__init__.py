"""Running a model: choosing tokens from logits, and turning a prompt into text as it comes."""
