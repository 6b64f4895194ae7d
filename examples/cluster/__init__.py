"""From a laptop to a cluster: the same command on one process, on two local Ray nodes, on Kubernetes."""
