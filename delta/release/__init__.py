"""What leaves the private side: message map, bound, one-bit mechanism, keyed noise, packing, memo."""
