"""Operators: one a file, each with its plain-Paddle reference, chosen once at load."""
