"""What is wrong between documents: each is fine by itself, together they do not do what is meant."""
