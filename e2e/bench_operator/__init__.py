"""Measures the operator on a real API server with thousands of services and a test double of the kubelet."""
