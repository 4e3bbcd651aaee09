"""What every call needs: device, progress, random state, checked arguments."""
