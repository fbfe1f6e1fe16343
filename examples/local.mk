# The examples use the installed interface alone, so they link with the shared library.
