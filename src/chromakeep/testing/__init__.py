"""Shipped conformance suites and fault injectors, for those who implement or use a seam of chromakeep.

``StoreSuite`` needs pytest; ``FaultyStore`` needs nothing.
"""
