"""What people look at: charts, galleries, the report, the model card and the review page. It knows no neural network.

May use core, metrics and data.
"""
