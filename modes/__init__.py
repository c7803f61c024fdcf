"""What each cluster operation mode means on layer 2.  Pure: computes, applies nothing."""

from modes.planner import plan_link

__all__ = ["plan_link"]
