"""Reads files and numbers, writes tables and pictures; needs neither torch nor transformers."""
