"""The page for paths that do not exist."""

from skyfast.web import html


def as_html(path: str) -> str:
    """Return the page for ``path``, with relative links to the existing pages."""
    root = "../" * (path.count("/") - 1) or "./"
    return html.document(
        title="Page not found · skyfast",
        body=(
            f"{html.header('', '', root=root, updates=False)}"
            '<main>\n<section class="panel"><h2>Page not found</h2>\n'
            f'<p>skyfast has no page at this address. The <a href="{root}">status page</a>'
            " has links to all pages.</p></section>\n</main>\n"
        ),
    )
