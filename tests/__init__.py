"""A package, because torch-fidelity brings one of the same name, which would be found in its place."""
