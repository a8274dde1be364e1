"""Every merge, precedence and visibility rule of the documents, applied once."""
