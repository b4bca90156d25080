"""Sound: files in and out, segmentation, filters and features."""
