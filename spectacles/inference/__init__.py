"""From inputs to predictions, on this machine or on a Ray cluster.

May use core, metrics, data and models.
"""
