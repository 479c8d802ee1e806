"""Shipped conformance suites and fault injectors, for those who implement or use a seam of chromakeep.

``StoreSuite``, ``SourceSuite`` and ``SinkSuite`` need pytest; ``FaultyStore``, ``MemorySource`` and ``MemorySink`` need
nothing.
"""
