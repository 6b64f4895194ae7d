"""A composition asked over HTTP, through clients that people have already."""
