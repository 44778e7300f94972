"""Where replicas go. Pure. Nothing is here yet: the scheduler of the cluster places pods by what they ask for."""
