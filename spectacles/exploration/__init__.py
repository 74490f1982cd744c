"""What is found in a data set before training: warnings, shortcuts, baselines and suggestions.

May use core, metrics, data, report and models.
"""
