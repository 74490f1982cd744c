"""From files and tables to pixels: rows, labels, splits, duplicates, decoding and preprocessing.

May use core and metrics.
"""
