"""The typed API: `v1alpha1` holds spec and status, `validation` the checks, `crd` renders the definition. Pure."""
