"""The mathematical core: problem = loss + atom + lambda, its meta-algorithm and its certificate."""
