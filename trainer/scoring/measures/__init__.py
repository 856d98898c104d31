"""Measures of free answers: each compares one answer with the right one; no model, no files."""
