"""Sphinx configuration: Markdown pages, numpydoc docstrings, formulas as MathML so that pages need no network."""

from __future__ import annotations

import re
from typing import Any

import latex2mathml.converter
from docutils import nodes

import osscar_opt

project = "osscar_opt"
author = "The osscar_opt authors"
copyright = author
version = release = osscar_opt.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `Problem` in a docstring links to it where it can
html_theme = "furo"
html_title = f"osscar_opt {release}"
html_static_path = ["_static"]
html_css_files = ["osscar.css"]
html_math_renderer = "mathml"
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's Parameters sections carry them
autosummary_generate = False
numpydoc_show_class_members = False  # the API pages say which members they show
numpydoc_xref_param_type = False
smartquotes = False  # X'X is a transpose, "cpu" a string
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Every public object has a docstring (GL08), its summary a sentence (SS03), an example (EX01; `make doctest` runs
# it), and no parameter that the signature lacks or orders otherwise (PR02, PR03).
numpydoc_validation_checks = {"EX01", "GL08", "PR02", "PR03", "SS03"}
numpydoc_validation_exclude = {
    r"\.__\w+__$",  # Python's own contract
    r"\._",  # private
    r"^osscar_opt\.linalg\.",  # kernels: formulas say more than examples
    r"\.LayerView\b",  # a protocol: nothing to run
    r"\.(Instance|Solution)Info$",  # records: the functions that return them have the examples
    r"\.extract_to_file$",  # runs a language model
    r"\.GramAccumulator\.\w+$",  # the class has the example
}


def _mathml(latex: str, display: str) -> str:
    # latex2mathml leaves numbers of equations and alignment to the page
    return latex2mathml.converter.convert(re.sub(r"\s+", " ", latex).strip(), display=display)


def visit_math(self: Any, node: nodes.Element) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the math renderer: formulas become MathML at build time, with no script to load."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
