"""Solvers of linear heads on frozen features: what evaluations, curves and solved phases share."""
