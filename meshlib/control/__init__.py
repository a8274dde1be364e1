"""The compiler and its server: documents → graph → snapshot → clients."""
