"""Every number about predictions with its 95 % interval; calibration, decision thresholds and abstention.

May use core.
"""
