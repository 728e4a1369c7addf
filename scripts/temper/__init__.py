"""Temper turns a table of questions and answers into a fine-tuned model behind an HTTP endpoint."""

__version__ = "0.1.0"
