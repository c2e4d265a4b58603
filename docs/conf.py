"""How sphinx builds these pages: without a network, with every warning an error."""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "_ext")]
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the examples are small: more threads only get in each other's way

import pages  # noqa: E402

import theodolite  # noqa: E402

pages.write(HERE / "generated")

project = "theodolite"
author = "theodolite developers"
copyright = "theodolite developers"
version = release = theodolite.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "mathml",
]
exclude_patterns = [
    "_build",
    "generated/gallery/*.ipynb",
    "generated/gallery/*.py",
    "generated/gallery/*.md5",
]
templates_path: list[str] = []
default_role = "py:obj"
nitpicky = True
# what other packages define has no page here, and looking it up would need a network; a name in single backquotes
# may be a parameter; a private base class has no page
nitpick_ignore_regex = [
    ("py:.*", r"(abc|click|contextlib|enum|sklearn|torch|typing)\..*"),
    ("py:class", r".*\._\w+"),
    ("py:obj", ".*"),
]
highlight_language = "none"  # what is not marked as Python is output

# Formulas become MathML when the pages are built, by the writer of the HTML report: no script, no font to load.
html_math_renderer = "theodolite"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

bibtex_bibfiles = ["../theodolite/refs.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "label"

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings give types, shapes and units
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    "write_computation_times": False,
    "plot_gallery": "True",
    "abort_on_example_error": True,
}
warnings.filterwarnings(
    "ignore", message=".*non-interactive.*", category=UserWarning
)  # plt.show() in an example

html_theme = "pydata_sphinx_theme"
html_title = "theodolite"
html_static_path = ["_static"]
html_css_files = ["theodolite.css"]
html_copy_source = False
html_theme_options = {
    "logo": {"text": "theodolite"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 6,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
