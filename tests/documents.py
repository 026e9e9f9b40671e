"""Files of the kinds that a user's folder holds."""

from __future__ import annotations

PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><title>The Lun &amp; its towns</title>
<style>p { color: red }</style><script>var x = "<p>hidden</p>";</script></head><body>
<nav><a href="/">Home</a></nav>
<h2>The <em>river</em></h2><p>The <b>Lun</b> rises in Ve<span>sapo</span>.</p><p>It is
long.</p><template><p>hidden</p></template><noscript>hidden</noscript>
<h3>Towns<br>on it</h3><table><tr><td>Vesapo</td><td>300 people</td></tr><tr><td>Tarn</td></tr></table>
<!-- hidden --></body></html>"""


def pdf(text: str, *, title: str = "") -> bytes:
    """A PDF of one page with one line of text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 612 792] >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (%s) >>" % title.encode(),
    ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return body + table + trailer % (len(objects) + 1, len(body))
