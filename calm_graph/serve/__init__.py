"""Where answers come from, and how it is deployed: an engine here, replicas on Ray Serve, augmenters as services."""
