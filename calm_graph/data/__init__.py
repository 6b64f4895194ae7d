"""From what a user has (files, data sets, rows) to batches: checked, tokenised, in an order that no stop disturbs."""
