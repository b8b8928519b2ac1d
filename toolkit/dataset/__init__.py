"""A scored dataset: the scores of every pair, and what is chosen by them."""
