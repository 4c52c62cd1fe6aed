"""The proxy: it measures, decides with `governor`, and streams."""
