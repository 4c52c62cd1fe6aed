"""The atlas environment: real facts on countries, a small model that knows some of them, and tools that know
all.

It is the demo, the test bed and the training environment. The model has a few million parameters and was
trained from scratch by the recipe in this package, so what it shows is a mechanism, measured on a
laptop-sized model.
"""
