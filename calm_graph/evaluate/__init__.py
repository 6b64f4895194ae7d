"""What a composition can do, measured beside its parts and its alternatives."""
