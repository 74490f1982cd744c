"""Every number and its 95 % interval, calibration and thresholds, in numpy.

May use core.
"""
