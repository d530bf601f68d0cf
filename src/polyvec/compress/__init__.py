"""Long contexts become fewer words, or few vectors."""
