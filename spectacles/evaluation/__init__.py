"""How good and how trustworthy a model is: comparison, slices, corruptions, label quality and attribution.

May use every room above it but training and exploration.
"""
