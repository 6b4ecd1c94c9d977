"""What belongs to the public internet, as far as an address says it."""

from __future__ import annotations

import pytest

from adapters.public import leads_inside


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/a.png", "http://10.1.2.3:80/", "http://169.254.169.254/latest", "http://0.0.0.0/"),
        *("http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[fe80::1%25eth0]/"),
        *("http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/"),
        *(
            "http://①②⑦.⓪.⓪.①/",
            "http://127。0。0。1/",
            "http://%31%32%37.0.0.1/",
            "http://\uff4cocalhost/",
            "http://localhost%2E/",
        ),
        *("http://localhost/", "http://a.localhost./", "http://metadata.google.internal/", "http://printer.local/"),
        *("http://user:pw@192.168.0.1/", "http:///a", "file:///etc/passwd", "a.png", "http://[::1", "http://[zz]/"),
    ],
)
def test_addresses_inside(url: str) -> None:
    assert leads_inside(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.com/a.png", "http://8.8.8.8/", "http://[2606:2800:220:1::1]:80/a", "https://EXAMPLE.com./"),
        *("https://bücher.example/", "https://例え.テスト/a.png"),
        *("https://internal.example.com/", "https://user@example.com/127.0.0.1", "gs://bucket/a.png"),
    ],
)
def test_addresses_outside(url: str) -> None:
    assert not leads_inside(url)
