"""Faces: containers of face images, multi-crop augmentation, a renderer of schematic faces, benchmark layouts."""
