"""Linear heads on frozen features, each at its optimum: what probes, curves and solved phases share."""
