"""Measuring a model: each file asks one question and answers with plain figures, their counts and their uncertainty."""
