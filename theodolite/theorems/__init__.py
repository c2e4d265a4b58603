"""Theorems and measurements, one a file, in folders by chapter; ``ALL`` is the list."""
