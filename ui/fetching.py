"""A picture by its address on the web: fetched once, from public hosts only, within limits of size and time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from contextlib import aclosing, suppress

import httpx

from memssl_core.data.images import MAX_BYTES, TOO_LARGE_FILE
from memssl_core.errors import ImageError

MAX_URL = 2_000  # characters
MAX_REDIRECTS = 3
TOTAL_S = 20.0
STEP_S, CONNECT_S = 10.0, 5.0  # between two signs of life of the host; for each of its addresses
MAX_ADDRESSES = 3  # of a host, that are tried
AGENT = "memssl-explorer (fetches a picture that a person asked for)"
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses within IPv6 ones, RFC 6052
UNICAST = ipaddress.ip_network("2000::/3")  # the only IPv6 addresses that are given out, RFC 4291

NO_ADDRESS = "This is no address of a picture; paste one that begins with https:// or http://."
NOT_PUBLIC = "This address leads into a private network, so it is not fetched; save the picture and upload it."
UNKNOWN_HOST = "There is no such host, or this machine is offline; check the address, or upload the picture."
NO_ANSWER = "The host could not be reached safely; check the address, or save the picture and upload it."
TOO_LONG = f"The picture did not come within {TOTAL_S:.0f} seconds; save it and upload it."
ROUND = f"This address leads to another one more than {MAX_REDIRECTS} times; paste the picture's own address."


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from everywhere: no private, local, reserved or multicast one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and ip not in UNICAST:
            return False
        ip = inner or ip
    return ip.is_global and not ip.is_multicast


def fetch(url: str, *, is_allowed: Callable[[str], bool] = is_public, total_s: float = TOTAL_S) -> tuple[bytes, str]:
    """The bytes at an address, at most 50 MB, and the last name in it. Not to be called from an event loop.

    Every host, also of a redirect, is resolved once and connected to at the address that was checked. Nothing of this
    machine is sent: no cookies, no proxy or passwords from the environment.

    Args: is_allowed, which IP addresses may be connected to.
    Raises: ImageError in a sentence.
    """
    try:
        return asyncio.run(_within(url, is_allowed, total_s))
    except (TimeoutError, httpx.TimeoutException):
        raise ImageError(TOO_LONG) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        raise ImageError(NO_ANSWER) from None


async def _within(url: str, is_allowed: Callable[[str], bool], total_s: float) -> tuple[bytes, str]:
    times = httpx.Timeout(STEP_S, connect=CONNECT_S)
    limits = httpx.Limits(max_keepalive_connections=0)  # a connection is good for the one name that it was made for
    async with asyncio.timeout(total_s), httpx.AsyncClient(trust_env=False, timeout=times, limits=limits) as client:
        at = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            async with aclosing(await _answer(client, at, is_allowed)) as response:
                if not response.has_redirect_location:
                    return await _body(response), at.path.rpartition("/")[2]
                at = _parsed(response.headers["location"], at)
        raise ImageError(ROUND)


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        found = base.join(url) if base else httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ImageError(NO_ADDRESS) from None
    if len(url) > MAX_URL or found.scheme not in ("http", "https") or not found.host or found.userinfo:
        raise ImageError(NO_ADDRESS)
    return found


async def _answer(client: httpx.AsyncClient, url: httpx.URL, is_allowed: Callable[[str], bool]) -> httpx.Response:
    """Of the host at an IP address that was checked, but under the name that was asked for, for TLS too."""
    host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ImageError(UNKNOWN_HOST) from None
    addresses = [str(one[4][0]) for one in found]
    if not all(map(is_allowed, addresses)):
        raise ImageError(NOT_PUBLIC)
    headers = {"Host": url.netloc.decode("ascii"), "User-Agent": AGENT, "Accept-Encoding": "identity"}
    for address in addresses[:MAX_ADDRESSES]:
        at = url.copy_with(host=address)
        request = client.build_request("GET", at, headers=headers, extensions={"sni_hostname": host})
        with suppress(httpx.ConnectError, httpx.ConnectTimeout):
            return await client.send(request, stream=True)
    raise ImageError(NO_ANSWER)


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != 200:
        raise ImageError(f"The host answered {response.status_code} for this address; open it in a browser to see why.")
    if int(response.headers.get("content-length", 0)) > MAX_BYTES:
        raise ImageError(TOO_LARGE_FILE)
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > MAX_BYTES:
            raise ImageError(TOO_LARGE_FILE)
    return bytes(data)
