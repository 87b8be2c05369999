"""From a row of any source to a batch of token ids with known spans. No module here imports transformers."""
