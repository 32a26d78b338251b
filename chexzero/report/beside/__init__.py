"""What a result is set beside: published figures, readers, a baseline, paired differences."""
