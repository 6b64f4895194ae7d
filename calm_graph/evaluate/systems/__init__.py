"""What answers: a composition, a plain model, and answers that are kept."""
