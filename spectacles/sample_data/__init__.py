"""The drawn data set of the demo.

Imports nothing of the project but core.
"""
