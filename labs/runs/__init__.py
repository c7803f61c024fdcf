"""Experiments: `softnlb lab run NAME`, one module each."""
