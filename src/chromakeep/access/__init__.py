"""Who may do what at the door: keys, and the rights they give. Knows Chroma's routes; does no I/O."""
