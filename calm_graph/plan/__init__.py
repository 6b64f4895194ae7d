"""What a declaration means: the validated graph, its picture and its cost; nothing here imports torch."""
