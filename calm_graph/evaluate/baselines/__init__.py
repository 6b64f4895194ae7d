"""What a composition is compared with: the same data and budget spent on other ways to use the same models."""
