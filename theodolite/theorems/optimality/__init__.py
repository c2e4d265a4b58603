"""Global optimality: homogeneity, parallel subnetworks, certificates."""
