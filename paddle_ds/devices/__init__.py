"""What a device can do and how Paddle is set up for it."""
