"""HTTP, by httpx."""

from __future__ import annotations

import os
import ssl

import httpx

from kerasvae.errors import AnswerError, ArgumentError
from kerasvae_serving.client.calls import plain, understood
from kerasvae_serving.client.http_calls import HttpCall
from kerasvae_serving.client.transports import AttemptError, Verify, unreachable

__all__ = ["HttpTransport"]

AGAIN = (429, 503)


class HttpTransport:
    """See `Transport`.

    Raises:
        ArgumentError: If the URL or the certificates cannot be used.
    """

    def __init__(self, url: str, key: str | None, verify: Verify) -> None:
        self._url = url
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            checked = ssl.create_default_context(cafile=verify) if isinstance(verify, str | os.PathLike) else verify
            self._http = httpx.AsyncClient(base_url=url, headers=headers, verify=checked, timeout=None)
        except OSError as error:
            raise ArgumentError("verify", rule="be a file of certificates", got=str(error), fix="Check it") from error
        except httpx.InvalidURL as error:
            raise ArgumentError("url", rule="be a URL", got=url, fix="Correct it") from error

    async def ask(self, call: HttpCall, seconds: float) -> object:
        """See `Transport.ask`. A request that may have been taken up is not sent again."""
        try:
            answer = await self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, params=call.parameters
            )
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            lost = unreachable(self._url, reason)
            if isinstance(error, httpx.ConnectError) and "CERTIFICATE" not in reason.upper():
                raise AttemptError(lost) from error
            raise lost from error
        if answer.status_code == 200:
            return understood(call.read, answer)
        refused = _error(answer)
        if answer.status_code not in AGAIN:
            raise refused
        given = answer.headers.get("retry-after", "")
        raise AttemptError(refused, float(given) if given.isdecimal() else None)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


def _error(answer: httpx.Response) -> AnswerError:
    try:
        sentence = plain(str(answer.json()["error"]))
    except (ValueError, KeyError, TypeError):
        sentence = f"The server answered {answer.status_code}."
    return AnswerError(answer.status_code, sentence)
