"""Holds the published prompt templates. `{}` is the class name, `{article}` is "a" or "an" before it."""

from __future__ import annotations

# ViLD (arXiv 2104.13921, appendix D), as written there; `prompts.load_templates` adds "This is ".
VILD = """
There is {article} {} in the scene.
There is the {} in the scene.
a photo of {article} {} in the scene.
a photo of the {} in the scene.
a photo of one {} in the scene.
itap of {article} {}.
itap of my {}.
itap of the {}.
a photo of {article} {}.
a photo of my {}.
a photo of the {}.
a photo of one {}.
a photo of many {}.
a good photo of {article} {}.
a good photo of the {}.
a bad photo of {article} {}.
a bad photo of the {}.
a photo of a nice {}.
a photo of the nice {}.
a photo of a cool {}.
a photo of the cool {}.
a photo of a weird {}.
a photo of the weird {}.
a photo of a small {}.
a photo of the small {}.
a photo of a large {}.
a photo of the large {}.
a photo of a clean {}.
a photo of the clean {}.
a photo of a dirty {}.
a photo of the dirty {}.
a bright photo of {article} {}.
a bright photo of the {}.
a dark photo of {article} {}.
a dark photo of the {}.
a photo of a hard to see {}.
a photo of the hard to see {}.
a low resolution photo of {article} {}.
a low resolution photo of the {}.
a cropped photo of {article} {}.
a cropped photo of the {}.
a close-up photo of {article} {}.
a close-up photo of the {}.
a jpeg corrupted photo of {article} {}.
a jpeg corrupted photo of the {}.
a blurry photo of {article} {}.
a blurry photo of the {}.
a pixelated photo of {article} {}.
a pixelated photo of the {}.
a black and white photo of the {}.
a black and white photo of {article} {}.
a plastic {}.
the plastic {}.
a toy {}.
the toy {}.
a plushie {}.
the plushie {}.
a cartoon {}.
the cartoon {}.
an embroidered {}.
the embroidered {}.
a painting of the {}.
a painting of a {}.
""".strip().splitlines()

# OpenAI's templates for ImageNet (Radford et al. 2021).
IMAGENET = """
a bad photo of a {}.
a photo of many {}.
a sculpture of a {}.
a photo of the hard to see {}.
a low resolution photo of the {}.
a rendering of a {}.
graffiti of a {}.
a bad photo of the {}.
a cropped photo of the {}.
a tattoo of a {}.
the embroidered {}.
a photo of a hard to see {}.
a bright photo of a {}.
a photo of a clean {}.
a photo of a dirty {}.
a dark photo of the {}.
a drawing of a {}.
a photo of my {}.
the plastic {}.
a photo of the cool {}.
a close-up photo of a {}.
a black and white photo of the {}.
a painting of the {}.
a painting of a {}.
a pixelated photo of the {}.
a sculpture of the {}.
a bright photo of the {}.
a cropped photo of a {}.
a plastic {}.
a photo of the dirty {}.
a jpeg corrupted photo of a {}.
a blurry photo of the {}.
a photo of the {}.
a good photo of the {}.
a rendering of the {}.
a {} in a video game.
a photo of one {}.
a doodle of a {}.
a close-up photo of the {}.
a photo of a {}.
the origami {}.
the {} in a video game.
a sketch of a {}.
a doodle of the {}.
a origami {}.
a low resolution photo of a {}.
the toy {}.
a rendition of the {}.
a photo of the clean {}.
a photo of a large {}.
a rendition of a {}.
a photo of a nice {}.
a photo of a weird {}.
a blurry photo of a {}.
a cartoon {}.
art of a {}.
a sketch of the {}.
a embroidered {}.
a pixelated photo of a {}.
itap of the {}.
a jpeg corrupted photo of the {}.
a good photo of a {}.
a plushie {}.
a photo of the nice {}.
a photo of the small {}.
a photo of the weird {}.
the cartoon {}.
art of the {}.
a drawing of the {}.
a photo of the large {}.
a black and white photo of a {}.
the plushie {}.
a dark photo of a {}.
itap of a {}.
graffiti of the {}.
a toy {}.
itap of my {}.
a photo of a cool {}.
a photo of a small {}.
a tattoo of the {}.
""".strip().splitlines()
