"""The three ways an image passes through the backbone, one file per path: modules that read it in and write it out."""
