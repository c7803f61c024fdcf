"""What the data planes cost, beside no filter and beside their peers: ``softnlb bench``."""
