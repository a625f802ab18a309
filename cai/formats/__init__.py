"""Every file format read or written, one small module each."""
