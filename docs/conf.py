"""How Sphinx builds the site: `make docs`, or sphinx-build on this folder."""

import os
import sys
from datetime import date
from pathlib import Path

import hggep_sc

HERE = Path(__file__).parent
sys.path.append(str(HERE / "_ext"))
sys.modules["hggep_sc.baselines"] = hggep_sc.baselines  # a name of the face, whose module lies in hggep_sc.methods

project, author = "hggep_sc", "hggep_sc developers"
copyright = f"{date.today().year}, {author}"
version = release = hggep_sc.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
    "api_links",
    "checkout_links",
    "tables",
]
# benchmarks/ and notebooks/ are links to the folders of the checkout
exclude_patterns = ["_build", "**.ipynb_checkpoints", "README.md"]
templates_path = ["_templates"]
nitpicky = True

# pages
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks hold their outputs; the tests run them
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# reference; types and defaults stand in the signature
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
default_role = "literal"  # api_links makes references of those that are names of the package
napoleon_google_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# names of other packages: their inventories are fetched where the build has the internet
INVENTORIES = {
    "python": "https://docs.python.org/3",
    "anndata": "https://anndata.readthedocs.io/en/stable",
    "matplotlib": "https://matplotlib.org/stable",
    "numpy": "https://numpy.org/doc/stable",
    "pandas": "https://pandas.pydata.org/docs",
    "scanpy": "https://scanpy.readthedocs.io/en/stable",
    "scipy": "https://docs.scipy.org/doc/scipy",
    "sklearn": "https://scikit-learn.org/stable",
    "spatialdata": "https://spatialdata.scverse.org/en/stable",
    "squidpy": "https://squidpy.readthedocs.io/en/stable",
    "torch": "https://docs.pytorch.org/docs/stable",
}
ONLINE = bool(os.environ.get("READTHEDOCS") or os.environ.get("HGGEP_DOCS_ONLINE"))
intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items()} if ONLINE else {}
nitpick_ignore_regex = [
    (
        r"py:.*",
        rf"({'|'.join([*INVENTORIES, 'abc', 'collections', 'concurrent', 'nn', 'np', 'pathlib', 'pd', 'typing'])})\..+",
    ),
    (r"py:class", r"AnnData|SpatialData|Data|Path"),  # as signatures name them
    (r"py:class", r"hggep_sc\.(config|features|methods|nn|prediction|section|storage|training)\..+"),  # not public
]

# looks
html_theme = "sphinx_book_theme"
html_title = "hggep_sc"
html_static_path = ["_static"]
html_css_files = ["hggep.css"]
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": False,
}
html_show_sourcelink = False
ogp_site_url = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
ogp_site_name = "hggep_sc"
ogp_social_cards = {"enable": False}
