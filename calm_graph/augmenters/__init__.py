"""Running a frozen model and reading the states of its blocks."""
