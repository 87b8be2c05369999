"""Reads run folders; computes statistics, claims and tables. Needs neither torch nor transformers."""
