"""Files to pixels: decoding, DICOM, normalising."""
