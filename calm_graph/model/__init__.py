"""The composed model: frozen models, the attachments between them, and what each token may see."""
