"""Post events to a web address as JSON."""

import hashlib
import hmac
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_SCHEMES = ("http", "https")
_SIGNATURE = "X-Na-Ssl-Signature"


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A redirection would turn the POST into a GET, and could send the token to another host."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class Webhook:
    """A web address that gets each event by HTTP POST, as JSON: the fields of the event and `phase`.

    Any answer from 200 to 299 says that the message has arrived; redirections are not followed. `Idempotency-Key` holds
    the event and its phase, so that a receiver can tell a message that was sent again.

    Args:
        url: http or https.
        token: sent as `Authorization: Bearer`, where given.
        signing_key: where given, the header `X-Na-Ssl-Signature` holds the HMAC-SHA256 of the body, in hexadecimal.
        timeout: of one attempt, in s.
        name: of the destination; the address without its query and password by default.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        signing_key: str | None = None,
        timeout: float = 10.0,
        name: str | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(f"a webhook must have an address with http:// or https:// and a host, got {url!r}")
        port = f":{parts.port}" if parts.port else ""
        self.name = name or f"webhook {parts.scheme}://{parts.hostname}{port}{parts.path}"
        self._url = url
        self._token = token
        self._signing_key = signing_key
        self._timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirection)

    def send(self, content: dict[str, Any]) -> None:
        """Post a message.

        Raises:
            OSError: it was not accepted.
        """
        body = json.dumps(content, ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "na-ssl-watch",
            "Idempotency-Key": f"{content.get('id')}-{content.get('phase')}",
        }
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._signing_key is not None:
            headers[_SIGNATURE] = hmac.new(self._signing_key.encode(), body, hashlib.sha256).hexdigest()
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            raise OSError(f"it answered {error.code}") from None

    def close(self) -> None:
        """Do nothing: there is no lasting connection."""
