"""What each cluster operation mode means on layer 2.  Pure: computes, applies nothing."""
