"""What a URL serves, held against the local artifact it claims to be."""
