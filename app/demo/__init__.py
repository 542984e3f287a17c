"""`growthlaw demo`: the whole loop on real text, over HTTP, through the same door as everybody."""
