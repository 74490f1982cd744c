"""Exported models: files for other runtimes, each compared with the model that it came from.

What is written where: `formats`. What a file must show before it is kept: `gate`.
"""
