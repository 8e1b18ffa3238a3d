"""The inside of the door: the rules for poison, proof that nothing was changed, and images to try an attack on."""
