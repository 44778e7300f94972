"""A Kubernetes cluster for end-to-end tests: made here on Debian, or any other that a kubeconfig context names."""
