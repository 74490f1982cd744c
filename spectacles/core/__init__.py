"""What every room stands on: settings, run folders, files, the machine, signals and errors.

Imports nothing of the project.
"""
