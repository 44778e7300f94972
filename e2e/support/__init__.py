"""What the demo and the cluster tests share: kubectl, waiting, the installed operator, models on the node."""
