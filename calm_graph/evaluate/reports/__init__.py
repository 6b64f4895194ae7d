"""What was found, as rows, tables, plots and pages."""
