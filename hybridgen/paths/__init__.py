"""The three ways an image passes through the backbone, one file a path: the modules that read it in and write it out."""
