"""Running a model: choosing tokens from logits, and turning a prompt into text and drawings as they come."""
