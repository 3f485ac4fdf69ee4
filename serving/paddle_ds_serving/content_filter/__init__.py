"""Refuses prompts and cuts answers: words and patterns from a file, and reviewers that other packages bring."""
