"""Who a browser is, by the cookie that it was given when somebody logged in."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from gateway import errors
from gateway.api.cookies import Cookies
from gateway.api.http import Response
from gateway.auth import Principal
from gateway.auth.accounts import Entered, Visit
from gateway.auth.browser import BrowserSession, BrowserSessions, LogIn

SESSION = "gateway_session"


class LogIns:
    """Knows a browser by its cookie."""

    def __init__(self, sessions: BrowserSessions, cookies: Cookies) -> None:
        self._sessions = sessions
        self._cookies = cookies

    async def authenticate(self, scope: Scope) -> Principal | None:
        """Whom the cookie of a request stands for, None without one. A page of another site cannot change anything
        with it."""
        token = self._cookies.read(scope, SESSION)
        if token is None:
            return None
        self._cookies.check_origin(scope, strict=True)
        found = await self._sessions.find(token)
        if found is None:
            raise errors.error("invalid_token", "The log-in has ended. Log in again.")
        scope["state"]["login"] = found.session
        return found.principal

    async def find(self, scope: Scope) -> LogIn | None:
        """The log-in that a browser has, on a route that needs none."""
        token = self._cookies.read(scope, SESSION)
        return None if token is None else await self._sessions.find(token)

    async def visit(self, request: Request) -> Visit:
        """The browser that a request comes from."""
        found = await self.find(request.scope)
        address = (request.scope.get("client") or ("",))[0]
        return Visit(address, request.headers.get("user-agent", ""), None if found is None else found.session)

    def enter(self, request: Request, response: Response, entered: Entered) -> Response:
        """Have the browser keep its new session."""
        response.headers.append(self._cookies.put(request.scope, SESSION, entered.token, self._sessions.lifetime_s))
        return response

    def leave(self, request: Request, response: Response) -> Response:
        """Have the browser forget its session."""
        response.headers.append(self._cookies.put(request.scope, SESSION, "", 0))
        return response


def person_of(request: Request) -> str:
    """The id of the user who asks; raises where the credential is nobody's."""
    principal: Principal = request.state.principal
    if principal.user_id is None:
        raise errors.error("not_found", "This key is no person's.")
    return principal.user_id


def login_of(request: Request) -> BrowserSession:
    """The log-in that a request comes with; raises where it is an API key's."""
    session: BrowserSession | None = getattr(request.state, "login", None)
    if session is None:
        raise errors.error("permission_denied", "Only somebody who is logged in can do this, not an API key.")
    return session
