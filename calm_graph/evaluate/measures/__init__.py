"""How good answers are: metrics, their intervals, and programs that are run to see."""
