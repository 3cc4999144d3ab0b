"""Pictures, clips and sound to tensors and back, the spans they take in a sequence, and the codec of what is drawn."""
