"""URI templates."""

import pytest

from meshlib.core.authz.template import template_match


@pytest.mark.parametrize(
    ("template", "fits", "fits_not"),
    [
        ("/books/{id}/pages", ["/books/1/pages"], ["/books/1/2/pages", "/books//pages", "/books/1/pages/"]),
        ("/a/*", ["/a/b"], ["/a/", "/a/b/c", "/a"]),
        ("/a/**", ["/a/", "/a/b/c"], ["/a", "/b/a/"]),
        ("/**/x", ["/a/b/x", "//x"], ["/a/y"]),
        ("/admin/{p=**}", ["/admin/x/y", "/admin/"], ["/admin"]),
        ("/{a=v1/*}/z", ["/v1/q/z"], ["/v2/q/z"]),
        ("/a.b", ["/a.b"], ["/axb"]),
    ],
)
def test_templates(template: str, fits: list[str], fits_not: list[str]) -> None:
    meets = template_match(template).meets
    assert [path for path in fits if not meets(path.encode())] == []
    assert [path for path in fits_not if meets(path.encode())] == []


@pytest.mark.parametrize(
    "template",
    ["", "a", "/{", "/{1a}", "/{a}/{a}", "/**/*", "/a b", "/{a=/b}", "/{a}{b}{c}{d}{e}{f}", "/[x]"],
)
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        template_match(template)
